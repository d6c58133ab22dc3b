"""The training loop: resume, non-finite values, checkpoints of other runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eavatar.errors import UserError
from eavatar.training.loop import finish, seed_everything, train


class Regression:
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
        return {"loss": loss * float("nan") if step == self.poisoned_at else loss}

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


def run(task: Regression, folder: Path, name: str = "a") -> Regression:
    train(task, 25, 5, folder, "test", name)
    return task


def interrupted(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Regression(killed_at=13), folder)


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


def test_another_run_starts_afresh(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert run(Regression(), tmp_path, name="b").steps == list(range(25))


def test_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    interrupted(tmp_path)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:100])
    assert run(Regression(), tmp_path).steps == list(range(5, 25))


def test_non_finite_value_stops_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 12: 'loss' is nan.*00000010\.pt"):
        run(Regression(poisoned_at=12), tmp_path)
    assert not (tmp_path / "log.csv").exists()


def test_resume_points_are_finite(tmp_path: Path) -> None:
    """A parameter may go bad without a trace in the loss; such a state is never written."""
    task = Regression()
    poison = torch.tensor(float("inf"))
    state = task.state
    task.state = lambda: state() | {"spare": {"weight": poison}}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"step 5: 'model\.spare\.weight'.*no checkpoint yet"):
        run(task, tmp_path)


def test_finish_removes_resume_points(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2
    finish(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="sums are in any order on CUDA")
def test_the_same_seed_gives_the_same_gradients_to_the_bit():
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
