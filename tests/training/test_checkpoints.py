"""Checkpoints: what is gone on from, what is set aside, what stays when a training is done."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from eavatar.training.checkpoints import finish, resume_points
from tests.scenes.regression import Regression, interrupted, read_log, run, run_of

FALLS = "the learning rates fall over the steps"


def aside(folder: Path, number: int = 1) -> list[str]:
    return sorted(path.name for path in (folder / f"checkpoints-set-aside-{number}").glob("*"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    interrupted(tmp_path)
    newest = resume_points(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert run(Regression(), tmp_path).steps == list(range(5, 25))


def test_checkpoints_of_another_training_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, run_of(**{"test.rate": "0.1", "seed": "0"}))
    with caplog.at_level(logging.WARNING):
        task = run(Regression(), tmp_path, run_of(**{"test.rate": "0.2", "seed": "0"}))
    assert task.steps == list(range(25))
    assert aside(tmp_path) == ["00000005.pt", "00000010.pt"]
    (message,) = caplog.messages
    assert "other test.rate; it is now" in message
    assert "checkpoints-set-aside-1" in message
    interrupted(tmp_path, run_of(seed="1"))
    assert run(Regression(), tmp_path).steps[0] == 0
    assert aside(tmp_path, 2) and aside(tmp_path, 3)  # numbers go on, nothing is overwritten


def test_no_readable_checkpoint_is_set_aside_too(tmp_path: Path) -> None:
    interrupted(tmp_path)
    for path in resume_points(tmp_path):
        path.write_bytes(b"damaged")
    assert run(Regression(), tmp_path).steps == list(range(25))
    assert len(aside(tmp_path)) == 2


def test_more_steps_go_on_where_a_finished_training_ended(tmp_path: Path) -> None:
    """And end where that many steps at once end, log and all."""
    whole = run(Regression(), tmp_path / "whole", run_of(steps=40))
    run(Regression(), tmp_path / "parts")
    finish(tmp_path / "parts", run_of())
    assert [path.name for path in (tmp_path / "parts/checkpoints").iterdir()] == ["finished.pt"]
    longer = run(Regression(), tmp_path / "parts", run_of(steps=40))
    assert longer.steps == list(range(25, 40))
    assert torch.equal(longer.model.weight, whole.model.weight)
    logs = [read_log(tmp_path / part) for part in ("whole", "parts")]
    assert logs[0].equals(logs[1])


def test_a_killed_continuation_keeps_the_finished_state(tmp_path: Path) -> None:
    run(Regression(), tmp_path)
    finish(tmp_path, run_of())
    with pytest.raises(KeyboardInterrupt):
        run(Regression(killed_at=27), tmp_path, run_of(steps=40))
    assert run(Regression(), tmp_path, run_of(steps=40)).steps == list(range(25, 40))


def test_more_steps_of_a_started_training_keep_its_steps(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert run(Regression(), tmp_path, run_of(steps=40)).steps == list(range(10, 40))


def test_where_rates_fall_more_steps_start_afresh_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, run_of(bound=FALLS))
    with caplog.at_level(logging.WARNING):
        assert run(Regression(), tmp_path, run_of(steps=40, bound=FALLS)).steps[0] == 0
    assert f"other test.steps ({FALLS})" in caplog.text
    with caplog.at_level(logging.INFO):
        finish(tmp_path, run_of(bound=FALLS))
    assert "more test.steps would start afresh" in caplog.text
    assert not (tmp_path / "checkpoints").exists()
    assert len(aside(tmp_path)) == 2


@pytest.mark.parametrize("steps", [25, 20])
def test_the_same_training_again_is_made_anew(tmp_path: Path, steps: int) -> None:
    """As `snakemake --forcerun` wants after a change of the code, or for fewer steps."""
    run(Regression(), tmp_path)
    finish(tmp_path, run_of())
    assert run(Regression(), tmp_path, run_of(steps=steps)).steps == list(range(steps))
    assert aside(tmp_path) == ["finished.pt"]


def test_a_training_killed_before_its_model_was_saved_makes_no_step_again(tmp_path: Path) -> None:
    run(Regression(), tmp_path)
    log = (tmp_path / "log.csv").read_text()
    assert run(Regression(), tmp_path).steps == []
    assert (tmp_path / "log.csv").read_text() == log
