"""Jobs side by side spread over the GPUs of a host. GPUs are names here: none is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eavatar import device
from eavatar.__main__ import ON_GPU
from tests.scenes import ROOT

GPU = re.compile(r"gpu=(1|training_gpus),")
SHOW_AND_WAIT = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); input()"

Job = subprocess.Popen[str]
Start = Callable[[str], tuple[Job, str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a job that goes on, with what it may use; tells which GPUs it sees."""
    jobs: list[Job] = []

    def start(visible: str) -> tuple[Job, str]:
        job = subprocess.Popen(
            [sys.executable, "-m", "eavatar.device", sys.executable, "-c", SHOW_AND_WAIT],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": visible, "TMPDIR": str(tmp_path)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        jobs.append(job)
        return job, job.stdout.readline().strip()

    yield start
    for job in jobs:
        job.communicate("\n")


def test_jobs_spread_evenly_over_the_gpus_and_a_killed_one_gives_its_back(start: Start) -> None:
    jobs = [start("2,5,GPU-8f,MIG-1/2/0") for _ in range(8)]
    assert Counter(gpu for _, gpu in jobs) == {"2": 2, "5": 2, "GPU-8f": 2, "MIG-1/2/0": 2}
    job, gpu = jobs[5]
    job.kill()
    job.wait()
    assert start("2,5,GPU-8f,MIG-1/2/0")[1] == gpu


@pytest.mark.parametrize("visible", ["3", "", "-1"])
def test_what_a_scheduler_has_assigned_is_left_as_it_is(start: Start, visible: str) -> None:
    assert [start(visible)[1] for _ in range(3)] == [visible] * 3


def test_jobs_that_may_use_some_of_the_gpus_count_those_of_others(start: Start) -> None:
    assert [start("0,1")[1], start("0,1")[1], start("1,2")[1], start("1,2")[1]] == [
        "0", "1", "2", "1",
    ]  # fmt: skip


def test_a_training_on_several_gpus_claims_those_that_the_fewest_hold(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("0,1,2")[1] == "0"
    folder = tmp_path / f"eavatar-gpus-{os.getuid()}"
    monkeypatch.setattr(device, "_claims_folder", lambda: folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    device.claim_gpus(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_a_process_keeps_the_gpu_that_it_has_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_claims_folder", lambda: tmp_path)
    for expected in ("7", "4"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4")
        device.claim_gpus()
        device.claim_gpus()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_every_rule_that_asks_for_a_gpu_claims_one() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = [rule for rule in re.split(r"^rule ", text, flags=re.MULTILINE) if GPU.search(rule)]
    verbs = {re.search(r"python -m eavatar ([\w-]+)", rule)[1].replace("-", "_") for rule in rules}
    no_rule_runs = {"render", "view", "export", "export_page"}
    assert verbs == {verb.__name__ for verb in ON_GPU} - no_rule_runs


def test_triton_needs_a_c_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not device.runs_triton.__wrapped__()
    monkeypatch.setenv("CC", "/opt/bin/cc")
    assert device.runs_triton.__wrapped__()
    monkeypatch.delenv("CC")
    compiler = tmp_path / "gcc"
    compiler.touch()
    compiler.chmod(0o755)
    assert device.runs_triton.__wrapped__()
