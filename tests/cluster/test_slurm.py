"""Four tiny subjects on a real Slurm, through `profiles/slurm`, while things go wrong.

``make test-slurm`` runs it; it takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import pytest
import yaml

from eavatar.__main__ import main
from eavatar.io import read_failures
from eavatar.preflight.subjects import COLUMNS
from eavatar.settings import merge
from tests.cluster.slurm import Cluster, call, missing, wait_for
from tests.scenes import ROOT
from tests.scenes.workflow import run, start

pytestmark = [
    pytest.mark.skipif("EAVATAR_SLURM" not in os.environ, reason="run by make test-slurm"),
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm can be set up: {missing()}"),
]

SOUND = ("one", "two", "three")
PATIENCE = 3000.0  # seconds for each thing to happen
PROFILE = (
    "--profile", "profiles/slurm", "--slurm-partition-config", "partitions.yaml",
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5",
    "--latency-wait", "10", "--max-threads", "1",
)  # fmt: skip
COMPARED = ("**/*.safetensors", "**/*.npz", "**/*.ply", "capture/**/*.csv", "capture/*.json",
            "tables/**/images.csv", "tables/floors.csv", "metrics.csv", "regions.csv")  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    with Cluster(folder) as running:
        yield running


def write_project(folder: Path) -> Path:
    """A working folder whose sheet lists the sound subjects, each with a head of its own."""
    folder.mkdir()
    for name in ("config", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    tiny = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    sequences = {"capture": {"ingest": {"sequences": ["EXP-1-head", "FREE"]}}}
    rows = []
    for seed, name in enumerate(SOUND):
        settings = merge(tiny, sequences, {"seeds": [seed]})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        rows.append({"subject": name, "capture": "generated", "settings": f"{name}.yaml"})
    limits = {"cpu": {}, "gpu": {"max_gpu": 1}}
    (folder / "partitions.yaml").write_text(yaml.safe_dump({"partitions": limits}))
    write_sheet(folder, rows)
    return folder


def write_sheet(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "subjects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def add_corrupt_subject(folder: Path) -> None:
    """A fourth subject, of whose videos one ends in the middle."""
    settings = yaml.safe_load((folder / "one.yaml").read_text())["capture"]["demo"]
    raw = folder / "raw"
    words = ["--settings", json.dumps(settings), "--seed", "9", "--raw", str(raw)]
    assert main(["demo-capture", *words, "--truth", str(folder / "truth")]) == 0
    video = next((raw / "sequences/FREE/images").glob("*.mp4"))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    own = {"subject": "corrupt", "capture": "raw", "settings": "one.yaml"}
    own |= {"morphable_model": "raw/morphable_model.h5", "landmarks": "raw/landmarks"}
    with (folder / "subjects.csv").open(newline="") as file:
        write_sheet(folder, [*csv.DictReader(file), own])


def storage(folder: Path) -> tuple[str, ...]:
    """Results are in a folder that jobs see through Snakemake only."""
    return "--default-storage-provider", "fs", "--default-storage-prefix", str(folder)


def jobs_of(rule: str) -> list[str]:
    """Slurm's numbers of the running jobs of a rule, by the comment that Snakemake leaves."""
    lines = call("squeue", "-h", "-t", "RUNNING,COMPLETING", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in lines if rule in line]


def resumable(project: Path) -> list[str]:
    """The jobs of stage II that have a resume point."""
    begun = project.glob("results/*/splat/full/checkpoints/[0-9]*.pt")
    names = {path.relative_to(project).parts[1] for path in begun}
    return [job for name in names for job in jobs_of(f"train_splat_wildcards_{name}_")]


def test_one_subject_fails_alone_and_the_others_survive_what_clusters_do(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Nothing differs from a run that is left alone, whose results a storage provider holds."""
    project, quiet = write_project(tmp_path / "project"), write_project(tmp_path / "quiet")
    add_corrupt_subject(project)
    with (tmp_path / "quiet.txt").open("w") as told, (tmp_path / "told.txt").open("w") as printed:
        undisturbed = start(quiet, *storage(tmp_path / "stored"), "--max-threads", "1", output=told)
        disturbed = start(project, *PROFILE, output=printed)

        def happens(condition: Callable[[], object], what: str) -> None:
            wait_for(lambda: condition() or disturbed.poll() is not None, what, PATIENCE)
            assert disturbed.poll() is None, f"the run ended before there was {what}"

        happens(lambda: jobs_of("train_sdf"), "stage I")
        cluster.stop("node1", signal.SIGKILL)
        time.sleep(5)
        cluster.start_worker("node1")
        happens(lambda: resumable(project), "a resume point of stage II")
        (cancelled, *_) = resumable(project)
        call("scancel", cancelled)
        happens(lambda: cancelled not in jobs_of("train_splat"), "the end of the cancelled job")
        cluster.stop("slurmctld")
        time.sleep(5)
        cluster.start_controller()
        assert disturbed.wait(PATIENCE) != 0  # one subject has failed
        assert undisturbed.wait(PATIENCE) == 0

    (failure,) = read_failures(project / "results/failed.csv")
    assert (failure.subject, failure.rule) == ("corrupt", "check")
    assert "FREE" in failure.sentence and (project / failure.log).is_file()
    assert f">{escape(failure.sentence)}<" in (project / "results/overview.html").read_text()
    assert f"SLURM-job '{cancelled}' failed" in (tmp_path / "told.txt").read_text()
    logs = [project / f"results/{name}/logs/train_splat/full.log" for name in SOUND]
    assert any("resuming from" in log.read_text() for log in logs)
    status, again = run(project, *PROFILE, "-n", *(f"results/{name}/report.html" for name in SOUND))
    assert status == 0 and "Nothing to be done" in again
    for name in SOUND:
        assert_same(project / "results" / name, tmp_path / "stored/results" / name)


def test_frames_are_on_the_disks_of_the_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """As docs/cluster.md has it: jobs copy what they read to one place, results lie in another."""
    project, scratch = write_project(tmp_path / "project"), tmp_path / "scratch"
    words = (
        *storage(tmp_path / "stored"),
        "--remote-job-local-storage-prefix", "$SCRATCH_OF_NODE/copies",
        "--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache",
    )  # fmt: skip
    made = "results/one/capture/masks/FREE.csv"
    os.environ["SCRATCH_OF_NODE"] = str(scratch)
    status, printed = run(project, *PROFILE, made, *words, seconds=PATIENCE)
    assert status == 0, printed
    assert (tmp_path / "stored" / made).is_file()
    assert (scratch / "copies").is_dir()
    assert not list(project.rglob("*.jpg"))


def assert_same(one: Path, other: Path) -> None:
    """All that stages hand on, to the byte."""
    names = {
        path.relative_to(root)
        for root in (one, other)
        for pattern in COMPARED
        for path in root.glob(pattern)
    }
    assert len(names) > 20
    differing = [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]
    assert differing == []
