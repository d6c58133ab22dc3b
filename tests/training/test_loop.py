"""The training loop: resume, values that are not finite, what a run's message says."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from signal import Signals, getsignal
from typing import Any

import pandas as pd
import pytest
import torch

from eavatar.errors import Interrupted, UserError
from eavatar.training.loop import seed_everything
from eavatar.training.parallel import STOPPING
from tests.scenes.regression import Regression, interrupted, read_log, run, run_of


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = run(Regression(), tmp_path / "whole")
    interrupted(tmp_path / "parts")
    resumed = run(Regression(), tmp_path / "parts")
    assert resumed.steps == list(range(10, 25))  # the newest resume point is at step 10
    torch.testing.assert_close(resumed.model.weight, whole.model.weight, rtol=0, atol=0)
    logs = [read_log(tmp_path / part) for part in ("whole", "parts")]
    assert logs[0].equals(logs[1])
    assert logs[0]["step"].tolist() == [0, 10, 20, 24]


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_stores_the_step_in_hand_and_then_ends(tmp_path: Path, number: Signals) -> None:
    task = Regression()
    step = task.step

    def signalled(at: int) -> dict[str, torch.Tensor]:
        if at == 12:
            os.kill(os.getpid(), number)
        return step(at)

    task.step = signalled  # type: ignore[method-assign]
    before = getsignal(number)
    with pytest.raises(Interrupted, match="stored step 13 of 25; run it again"):
        run(task, tmp_path)
    assert getsignal(number) is before
    assert run(Regression(), tmp_path).steps == list(range(13, 25))


def test_no_more_than_five_minutes_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=100)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    with pytest.raises(KeyboardInterrupt):
        run(Regression(killed_at=13), tmp_path, run_of(every=1000))
    assert run(Regression(), tmp_path, run_of(every=1000)).steps[0] >= 10


def test_the_log_counts_the_seconds_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves a second a look, a minute while nothing runs."""
    clock = [0.0]

    def look() -> float:
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr("time.perf_counter", look)
    interrupted(tmp_path, run_of(steps=40))
    clock[0] += 60
    run(Regression(), tmp_path, run_of(steps=40))
    assert pd.read_csv(tmp_path / "log.csv")["seconds"].tolist() == [1, 2, 3, 4, 5]


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
