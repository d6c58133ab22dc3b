"""Results in a folder that jobs see through Snakemake's storage plugin alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eavatar.io import read_failures
from eavatar.preflight.subjects import COLUMNS
from tests.scenes import ROOT
from tests.scenes.small_setup import write_subject
from tests.scenes.workflow import run

pytest.importorskip("snakemake_storage_plugin_fs")
pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="the plugin needs rsync")


def test_the_first_rules_find_and_leave_all_they_name_in_storage(tmp_path: Path) -> None:
    """What a rule reads and does not name is not there; tests/cluster runs all rules so."""
    write_subject(tmp_path / "raw")
    (tmp_path / "config").symlink_to(ROOT / "config")
    row = f"a,raw/capture,raw/model.h5,raw/landmarks,,,{ROOT / 'tests/tiny.yaml'},EXP-1* FREE"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS[:8])}\n{row}\n")
    words = ("--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "s"))
    target, config = "results/a/face/landmarks/FREE.npz", ["keep_frames=False"]
    status, printed = run(tmp_path, *words, target, config=config)
    assert status == 0, printed
    made = tmp_path / "s/results/a"
    assert (made / "face/landmarks/FREE.npz").is_file() and (made / "check/1.txt").is_file()
    assert (made / "capture/FREE.csv").is_file() and not (made / "capture/FREE").exists()
    assert not (tmp_path / "results").exists()

    next((tmp_path / "raw/capture/sequences/FREE/images").glob("*.mp4")).write_bytes(b"")
    status, printed = run(tmp_path, *words, target, config=config)
    assert status != 0, printed
    (failure,) = read_failures(tmp_path / "results/failed.csv")
    assert (failure.subject, failure.rule) == ("a", "check")
    assert ".mp4" in failure.sentence
    assert Path(failure.log) == made / "logs/check/2.log" and Path(failure.log).is_file()
