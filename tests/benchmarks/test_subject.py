"""The table of a whole subject's time, scaled from a run on a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.subject import Size, describe, read_rules, threads_of
from eavatar.io import Sequences, write_sequences

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
PART = Size(timesteps=5, images=10, test_images=4)
# ten times the timesteps in twice the cameras, and three times the test images
WHOLE = Size(timesteps=50, images=200, test_images=12)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run on two sequences in two cameras, as Snakemake's benchmark files tell of it."""
    write_sequences(tmp_path / "capture" / "sequences.json", Sequences(("EXP-1-head",), ("FREE",)))
    for name, timesteps in (("EXP-1-head", 3), ("FREE", 2)):
        rows = [f"{timestep},{camera}" for timestep in range(timesteps) for camera in "ab"]
        (tmp_path / "capture" / f"{name}.csv").write_text("\n".join(["timestep,camera", *rows]))
    (tmp_path / "capture" / "unused.csv").write_text("timestep,camera\n0,a\n")
    jobs = {
        "detect_landmarks/EXP-1-head": (3.0, 500.0),
        "detect_landmarks/FREE": (2.0, 900.0),
        "fit_face": (7.0, 100.0),
        "train_sdf/full": (100.0, 2000.0),
        "evaluate/full": (30.0, 2000.0),
    }
    for job, (seconds, mebibytes) in jobs.items():
        path = tmp_path / "benchmarks" / f"{job}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = [seconds, "0:00:03", mebibytes, 0, 0, 0, 0, 0, 100, 2 * seconds]
        path.write_text(HEADER + "\t".join(map(str, columns)) + "\n")
    return tmp_path


def test_the_size_of_a_run_is_that_of_the_sequences_it_uses(results: Path) -> None:
    assert Size.of(results / "capture") == PART


def test_each_rule_grows_with_its_own_count(results: Path) -> None:
    rules = {rule.name: rule for rule in read_rules(results, cores=1)}
    assert rules["detect_landmarks"].elapsed(PART, WHOLE) == 5 * 20  # images
    assert rules["fit_face"].elapsed(PART, WHOLE) == 7 * 10  # timesteps
    assert rules["train_sdf"].elapsed(PART, WHOLE) == 100  # steps of its settings
    assert rules["evaluate"].elapsed(PART, WHOLE) == 30 * 3  # images of test sequences
    assert rules["detect_landmarks"].memory_gb == pytest.approx(900 * 2**20 / 1e9)


def test_jobs_of_a_rule_share_the_cores(results: Path) -> None:
    threads = threads_of("detect_landmarks")
    (rule,) = (r for r in read_rules(results, cores=2 * threads) if r.name == "detect_landmarks")
    assert (rule.jobs, rule.side_by_side) == (2, 2)
    assert rule.elapsed(PART, WHOLE) == 5 * 20 / 2


def test_the_table_adds_up(results: Path) -> None:
    *_, last = describe(read_rules(results, cores=1), PART, WHOLE)
    assert last == "| all | | 142 s | 284 s | | | | 360 s | |"
