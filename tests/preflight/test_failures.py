"""What has failed in a run: a line for each job, with its sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from eavatar.errors import UserError
from eavatar.io import Failure, read_failures
from eavatar.preflight.failures import SILENT, note_failures, read_sentence

TRACE = "Traceback (most recent call last):\n  File x\nRuntimeError: CUDA out of memory\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("reading\neavatar check: a.mp4 ends; copy it again.\n", "a.mp4 ends; copy it again."),
        ("sdf: 3%\rsdf: 4%\reavatar train-sdf: disk full.\nKilled\n", "disk full."),
        ("sdf: 4%|#  | 4/99 [00:01<00:24, 4step/s]eavatar train-sdf: disk full.", "disk full."),
        (f"eavatar is fine\n{TRACE}", "RuntimeError: CUDA out of memory"),
        ("sdf: 3%|#  | 30/1000", SILENT),
        ("", SILENT),
    ],
)  # fmt: skip
def test_a_log_tells_why_its_job_failed(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "job.log").write_text(text)
    assert read_sentence(tmp_path / "job.log") == sentence


def test_a_job_without_a_log_was_killed(tmp_path: Path) -> None:
    assert read_sentence(tmp_path / "none.log") == SILENT


def test_failures_are_read_as_written_and_go_with_the_next_good_run(tmp_path: Path) -> None:
    path = tmp_path / "failed.csv"
    rows = [
        Failure("b", "ingest", 'said "no", twice', "b.log"),
        Failure("a", "check", "é", "a.log"),
    ]
    note_failures(rows, path)
    assert read_failures(path) == rows[::-1]
    note_failures([], path)
    assert not path.exists()
    with pytest.raises(UserError, match="what has failed"):
        read_failures(path)
    path.write_text("subject,why\n")
    with pytest.raises(UserError, match="has columns"):
        read_failures(path)
