"""The whole workflow at a tiny size: killed in stage II, resumed, and only changed rules rerun."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eavatar.preflight.subjects import COLUMNS
from eavatar.settings import merge, read_config
from tests.scenes import ROOT
from tests.scenes.small_setup import write_subject
from tests.scenes.workflow import count_jobs, run, start

# Every setting of how a training is carried out, changed; see test_each_run_setting_is_changed.
RUN_CHANGES = (
    'sdf={"run": {"image_memory_gb": 1.5, "checkpoint_every": 7}}',
    'splat={"run": {"image_memory_gb": 1.5, "checkpoint_every": 7, "mixed_precision": false,'
    ' "compile": false, "gpus": 2}}',
    'nerface={"run": {"image_memory_gb": 1.5, "checkpoint_every": 7, "mixed_precision": false}}',
    'havatar={"run": {"image_memory_gb": 1.5, "checkpoint_every": 7, "mixed_precision": false}}',
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A working folder with the project's configuration and a sheet of one tiny subject."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "config").symlink_to(ROOT / "config")
    row = f"demo,generated,,,,,{ROOT / 'tests/tiny.yaml'}"
    (folder / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    return folder


def kill_training(project: Path, process: subprocess.Popen[str]) -> None:
    """Kill the stage II process as soon as it has a checkpoint."""
    checkpoints = project / "results/demo/splat/full/checkpoints"
    deadline = time.monotonic() + 900
    while not list(checkpoints.glob("0*.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "stage II made no checkpoint"
        time.sleep(0.05)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0") if entry.exists() else []
        if b"train-splat" in words and entry.with_name("cwd").readlink() == project.resolve():
            os.kill(int(entry.parent.name), signal.SIGKILL)


@pytest.fixture
def compared(tmp_path) -> Path:
    """Another working folder, whose subject has three variants."""
    overlay = {
        "variants": {
            "uncontrolled": {"splat": {"control": {"enabled": False}}},
            "small": {"sdf": {"width": 9}, "tables": {"evaluate": {"pictures": 1}}},
            "other": {"method": "images", "images": "rendered/{subject}"},
            "half": {"held_out_cameras": ["alternate"], "seeds": [0, 3]},
            "same": {"splat": {"control": {"enabled": True}}},
        }
    }
    settings = merge(yaml.safe_load((ROOT / "tests/tiny.yaml").read_text()), overlay)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (tmp_path / "config").symlink_to(ROOT / "config")
    row = f"demo,generated,,,,,{tmp_path / 'settings.yaml'}"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    image = tmp_path / "rendered/demo/FREE/222200031/00000.png"
    image.parent.mkdir(parents=True)
    image.touch()
    return tmp_path


def test_variants_share_all_that_they_agree_on(compared):
    status, printed = run(compared, "-np", "results/demo/metrics.csv", "results/demo/report.html")
    assert status == 0, printed
    jobs = count_jobs(printed)
    assert jobs["ingest"] == 3  # one for each sequence, whatever the variants
    assert (jobs["train_sdf"], jobs["train_splat"], jobs["evaluate"]) == (4, 5, 7)
    trained = r"--sdf results/demo/sdf/(\S+) (.*) --output results/demo/splat/(\S+)"
    half = "--held-out-cameras alternate"
    assert set(re.findall(trained, printed)) == {
        ("full", "", "full"),
        ("full", "", "uncontrolled"),
        ("small", "", "small"),
        ("half", half, "half"),
        ("half@3", half, "half@3"),
    }
    assert printed.count(half) == 6  # both stages and the evaluation, with two seeds
    drawn = r"--source results/demo/splat/(\S+) .* --output results/demo/tables/(\S+)"
    assert ("full", "same") in re.findall(drawn, printed)
    assert "--variant full uncontrolled small other half half@3 same floors --images" in printed
    assert "report --subject demo --variant full" in printed


def test_images_of_another_code_need_no_training(compared):
    status, printed = run(compared, "-np", "results/demo/tables/other/images.csv")
    assert status == 0, printed
    assert "--method images --source rendered/demo" in printed
    assert not {"train_sdf", "train_splat"} & set(count_jobs(printed))


@pytest.mark.parametrize("method", ["nerface", "havatar"])
def test_a_baseline_trains_where_a_variant_asks_for_it_and_nowhere_else(compared, method):
    more = [f"variants={{{method}: {{method: {method}}}}}"]
    rule = f"train_{method}"
    status, printed = run(compared, "-n", "results/demo/metrics.csv")
    assert status == 0, printed
    assert rule not in count_jobs(printed)
    status, printed = run(compared, "-n", "results/demo/tables/full/images.csv", config=more)
    assert status == 0, printed
    assert rule not in count_jobs(printed)
    target = f"results/demo/tables/{method}/images.csv"
    status, printed = run(compared, "-np", target, config=more)
    assert status == 0, printed
    assert count_jobs(printed)[rule] == 1
    assert not {"train_sdf", "train_splat"} & set(count_jobs(printed))
    assert f"--method {method} --source results/demo/{method}/{method} " in printed


def test_a_faulty_or_unknown_variant_is_one_sentence(compared):
    status, printed = run(compared, "-n", "results/demo/tables/none/images.csv")
    assert status != 0
    assert "no variant 'none', but full, uncontrolled, small, other, half, half@3, same" in printed
    settings = compared / "settings.yaml"
    settings.write_text(settings.read_text().replace("width: 9", "breadth: 9"))
    status, printed = run(compared, "-n")
    assert status != 0
    assert "variant 'small': unknown setting 'sdf.breadth'" in printed
    assert "Traceback" not in printed


def test_each_run_setting_is_changed():
    before = read_config(ROOT / "config/config.yaml", ROOT / "tests/tiny.yaml")
    for change in RUN_CHANGES:
        name, _, text = change.partition("=")
        run, present = json.loads(text)["run"], getattr(before, name).run.model_dump()
        assert set(run) == set(present)
        assert all(run[key] != value for key, value in present.items())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the process to kill in /proc")
def test_frames_go_when_nothing_needs_them_any_more_where_settings_say_so(tmp_path):
    """And what was made of them stays, and is not made again."""
    write_subject(tmp_path / "one")
    (tmp_path / "config").symlink_to(ROOT / "config")
    row = f"a,one/capture,one/model.h5,one/landmarks,,,{ROOT / 'tests/tiny.yaml'},EXP-1* FREE"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS[:8])}\n{row}\n")
    target, switch = "results/a/face/landmarks/FREE.npz", ["keep_frames=False"]
    status, printed = run(tmp_path, target, config=switch)
    assert status == 0, printed
    capture = tmp_path / "results/a/capture"
    assert not (capture / "FREE").exists() and (capture / "FREE.csv").exists()
    status, printed = run(tmp_path, "-n", target, config=switch)
    assert "Nothing to be done" in printed


def test_killed_resumed_and_only_changed_rules_rerun(project):
    targets = ["results/demo/metrics.csv", "results/demo/report.html"]
    first = start(project, *targets)
    kill_training(project, first)
    printed, _ = first.communicate(timeout=300)
    assert first.returncode != 0, printed

    status, printed = run(project, *targets)
    assert status == 0, printed
    assert "resuming from" in printed
    assert "rule ingest:" not in printed
    results = project / "results/demo"
    log = pd.read_csv(results / "splat/full/log.csv")
    assert log["step"].is_unique
    assert log["step"].iloc[-1] == 119
    assert not (results / "splat/full/checkpoints").exists()
    table = pd.read_csv(results / "metrics.csv")
    drawn = {"full": {"self_reenactment", "neutral_expression"}}
    drawn["floors"] = {"mean_image", "nearest_training_frame"}
    assert {name: set(rows) for name, rows in table.groupby("variant")["protocol"]} == drawn
    assert table["psnr_db"].between(5, 60).all()
    assert "<html" in (results / "report.html").read_text()[:200].lower()

    status, printed = run(project, "-n", *targets)
    assert status == 0
    assert "Nothing to be done" in printed

    assert (results / "sdf/full/checkpoints/finished.pt").exists()  # for more steps
    status, printed = run(project, "-n", *targets, config=RUN_CHANGES)
    assert status == 0
    assert "Nothing to be done" in printed
    status, printed = run(project, "-np", "-R", "train_splat", *targets, config=RUN_CHANGES)
    assert status == 0
    assert "train_sdf" not in count_jobs(printed)
    assert '"checkpoint_every":7,"mixed_precision":false,"compile":false,"gpus":2}' in printed

    other = ['capture={"demo": {"timesteps": 4}, "matte": {"max_jump": 0.3}}']
    status, printed = run(project, "-n", *targets, config=other)
    assert status == 0
    assert count_jobs(printed)["demo_capture"] == 1
    assert count_jobs(printed)["ingest"] == 3, "another recording: all of it"

    overlay = project / "overlay.yaml"
    text = (ROOT / "tests/tiny.yaml").read_text().replace("pictures: 2", "pictures: 3")
    overlay.write_text(text.replace("checkpoint_every: 10", "checkpoint_every: 11"))
    sheet = project / "subjects.csv"
    sheet.write_text(sheet.read_text().replace(str(ROOT / "tests/tiny.yaml"), str(overlay)))
    status, printed = run(project, "-n", *targets)
    assert status == 0, printed
    listed = set(re.findall(r"^rule (\w+):", printed, flags=re.MULTILINE))
    assert listed == {"evaluate", "floors", "metrics", "report"}, printed

    with overlay.open("a") as file:
        file.write("variants:\n  uncontrolled: {splat: {control: {enabled: false}}}\n")
    status, printed = run(project, "-n", *targets)
    assert status == 0, printed
    assert count_jobs(printed)["train_splat"] == 1, "only that of the new variant"
    assert not {"ingest", "train_sdf"} & set(count_jobs(printed)), printed
