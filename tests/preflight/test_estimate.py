"""What a run takes, told before it: against what it then did."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eavatar.__main__ import main
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.io import Sequences, write_cameras, write_sequences
from eavatar.preflight.estimate import (
    STORED,
    amounts,
    describe,
    list_tasks,
    measure,
    read_reference,
    sum_tasks,
)
from eavatar.preflight.subjects import Plan, make_plans
from eavatar.provenance import recorded
from eavatar.settings import read_yaml
from tests.scenes import CONFIG
from tests.scenes.small_capture import INTRINSICS, SERIALS, world_to_camera
from tests.scenes.small_setup import FRAMES, SEQUENCES, write_subject
from tests.scenes.workflow import count_jobs, run

VARIANTS = {
    "uncontrolled": {"splat": {"control": {"enabled": False}}},
    "same": {"splat": {"control": {"enabled": True}}},
    "half": {"held_out_cameras": ["alternate"], "seeds": [0, 3]},
    "nerface": {"method": "nerface"},
}
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
MEASURED = {"ingest/EXP-1-head": 6.0, "ingest/FREE": 3.0, "train_splat/full": 50.0}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a sheet of a capture of small videos, and a generated subject."""
    write_subject(tmp_path / "one")
    (tmp_path / "config").symlink_to(CONFIG)
    overlay = {"capture": {"ingest": {"every": 1}}, "variants": VARIANTS}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    rows = ["subject,capture,morphable_model,settings"]
    rows += ["a,one/capture,one/model.h5,overlay.yaml", "demo,generated,,config/demo.yaml"]
    (tmp_path / "subjects.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def plans(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Plan]:
    monkeypatch.chdir(project)
    content = read_yaml(CONFIG / "config.yaml")
    return make_plans(project / "subjects.csv", content, {})[0]


def test_jobs_are_those_that_snakemake_plans(project: Path, plans: dict[str, Plan]) -> None:
    status, printed = run(project, "-n")
    assert status == 0, printed
    of_all_subjects = {"all": 1, "overview": 1}
    tasks = [task for plan in plans.values() for task in list_tasks(plan, measure(plan))]
    jobs = {task.rule: task.jobs for task in sum_tasks(tasks)} | of_all_subjects
    assert {**jobs, "total": sum(jobs.values())} == count_jobs(printed)


def test_a_capture_is_as_large_as_its_videos_say(plans: dict[str, Plan]) -> None:
    size = measure(plans["a"])
    assert (size.sequences, size.timesteps, size.held_out) == (3, 3 * FRAMES, FRAMES)
    assert size.cameras == tuple(sorted(SERIALS))
    variants = plans["a"].variants
    assert size.measured(variants["full"]) == 3 * FRAMES
    assert size.measured(variants["half"]) == FRAMES


def test_a_sequence_without_videos_is_one_sentence(project: Path, plans: dict[str, Plan]) -> None:
    images = project / "one" / "capture" / "sequences" / "EXP-1-head" / "images"
    for video in images.iterdir():
        video.unlink()
    with pytest.raises(UserError, match=f"camera {min(SERIALS)} is missing from EXP-1-head"):
        measure(plans["a"])


def write_results(root: Path, plan: Plan, sequences: tuple[str, ...] = SEQUENCES) -> Path:
    """What a run of the subject leaves, as far as it is a reference: two of its sequences."""
    cameras = {s: Camera(INTRINSICS, world_to_camera(0.0), 64, 64) for s in SERIALS}
    write_cameras(root / "capture" / "cameras.json", cameras)
    split = Sequences(sequences[:-1], sequences[-1:])
    write_sequences(root / "capture" / "sequences.json", split)
    for name in sequences:
        rows = [f"{timestep},{camera}" for timestep in range(FRAMES) for camera in SERIALS]
        (root / "capture" / f"{name}.csv").write_text("\n".join(["timestep,camera", *rows]))
    (root / "capture" / "frame.jpg").write_bytes(bytes(100_000))
    for job, seconds in MEASURED.items():
        path = root / "benchmarks" / f"{job}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER + f"{seconds}\t0\t0\t0\t0\t0\t0\t0\t0\t{2 * seconds}\n")
    settings = {"settings": plan.config.model_dump_json()}
    with recorded("metrics", "1.2.3", settings, [], root / "metrics.csv"):
        pass
    return root


def test_a_run_is_estimated_from_itself_and_grows_with_its_work(
    tmp_path: Path, plans: dict[str, Plan]
) -> None:
    plan = plans["a"]
    parts = ("EXP-1-head", "FREE")  # of three sequences of the same length
    reference = read_reference(write_results(tmp_path / "part", plan, parts))
    work = amounts(plan.config, measure(plan))
    assert reference.rates["ingest"].seconds * work["ingest"] == pytest.approx(9.0 * 3 / 2)
    assert reference.rates["train_splat"].seconds * work["train_splat"] == pytest.approx(50.0)
    assert reference.rates["train_splat"].cpu_seconds * work["train_splat"] == pytest.approx(100.0)
    size = sum(path.stat().st_size for path in (tmp_path / "part" / "capture").iterdir())
    assert reference.sizes["capture"] * work["ingest"] == pytest.approx(size * 3 / 2)


def test_money_is_of_the_hours_of_jobs_that_ask_for_a_gpu(
    tmp_path: Path, plans: dict[str, Plan]
) -> None:
    reference = read_reference(write_results(tmp_path / "done", plans["a"]))
    tasks = sum_tasks(list_tasks(plans["a"], measure(plans["a"])))
    lines = describe(tasks, reference, 1, price=36.0)
    assert "its CPU-hours lack up to the last 30 s of each job" in lines[0]
    assert not any("lack" in line for line in describe(tasks, STORED, 1, None))
    trained = 4  # full, uncontrolled, half and half@3; same is full's
    assert f"cost: {50 * trained / 100:.2f} at 36 a GPU-hour" in lines
    assert any(line.startswith("not measured") and "train_nerface" in line for line in lines)


def test_the_verb_tells_what_is_wrong(
    project: Path, plans: dict[str, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "demo", "--subjects", "subjects.csv"]) == 0
    assert "disk: " in capsys.readouterr().out
    assert main(["estimate", "nobody", "--subjects", "subjects.csv"]) == 2
    assert "'nobody' cannot be estimated: the sheet lists a, demo" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"metrics\.provenance\.json does not exist"):
        read_reference(project)


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_that_cannot_be_is_one_sentence(
    price: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "--gpu-hour", price]) == 2
    told = capsys.readouterr().err
    assert told == f"eavatar estimate: --gpu-hour {price} is no price; give 0 or more.\n"
