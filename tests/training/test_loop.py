"""The training loop: resume, values that are not finite, what a run's message says."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eavatar.errors import UserError
from eavatar.training.checkpoints import Run
from eavatar.training.loop import Trainable, seed_everything, train


class Regression(Trainable):
    """A linear fit to random points, with Adam, that can be told to fail at a step."""

    def __init__(self, killed_at: int = -1, poisoned_at: int = -1):
        seed_everything(3)
        self.model = nn.Linear(4, 1)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.killed_at, self.poisoned_at = killed_at, poisoned_at
        self.steps: list[int] = []

    def step(self, step: int) -> dict[str, torch.Tensor]:
        if step == self.killed_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        points = torch.randn(8, 4)
        loss = (self.model(points) - points.sum(dim=1, keepdim=True)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss, "rgb": loss * float("nan") if step == self.poisoned_at else loss}

    def describe(self, step: int) -> str:
        return f"EXP-1 timestep {step} in 222200037"

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        pass


def run_of(steps: int = 25, every: int = 5, bound: str | None = None, **definition: str) -> Run:
    return Run("test", steps, every, definition, bound)


def run(task: Regression, folder: Path, given: Run | None = None) -> Regression:
    train(task, given or run_of(), folder)
    return task


def interrupted(folder: Path, given: Run | None = None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Regression(killed_at=13), folder, given)


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = run(Regression(), tmp_path / "whole")
    interrupted(tmp_path / "parts")
    resumed = run(Regression(), tmp_path / "parts")
    assert resumed.steps == list(range(10, 25))  # the newest resume point is at step 10
    torch.testing.assert_close(resumed.model.weight, whole.model.weight, rtol=0, atol=0)
    logs = [(tmp_path / part / "log.csv").read_text() for part in ("whole", "parts")]
    assert logs[0] == logs[1]
    rows = list(csv.DictReader(logs[0].splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 24]


def test_another_checkpoint_interval_changes_nothing(tmp_path: Path) -> None:
    whole = run(Regression(), tmp_path / "whole")
    interrupted(tmp_path / "parts")
    resumed = run(Regression(), tmp_path / "parts", run_of(every=3))
    assert resumed.steps[0] == 10
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_a_value_that_is_not_finite_is_named_with_step_and_what_it_saw(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(Regression(poisoned_at=12), tmp_path)
    for part in ("step 12, where rgb is nan;", "00000010.pt", "of EXP-1 timestep 12 in 222200037"):
        assert part in str(caught.value)
    assert not (tmp_path / "log.csv").exists()


def test_resume_points_are_finite(tmp_path: Path) -> None:
    """A parameter may go bad without a trace in the loss; such a state is never written."""
    task = Regression()
    poison = torch.tensor(float("inf"))
    state: Callable[[], dict[str, Any]] = task.state
    task.state = lambda: state() | {"spare": {"weight": poison}}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"step 5, where model\.spare\.weight.*no checkpoint yet"):
        run(task, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="sums are in any order on CUDA")
def test_the_same_seed_gives_the_same_gradients_to_the_bit() -> None:
    """Many rows gathered from few: their gradients are summed by all threads."""

    def gradient() -> torch.Tensor:
        seed_everything(0)
        table = torch.rand(50, 64, requires_grad=True)
        rows = table[torch.randint(50, (100_000,))]
        (rows * torch.rand_like(rows)).sum().backward()
        assert table.grad is not None
        return table.grad

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(3))
