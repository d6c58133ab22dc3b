"""Quality over time: what is measured, and that nothing has seen what is held out."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from benchmarks import convergence
from benchmarks.budget import DISJOINT, WHOLE
from eavatar.errors import UserError
from tests.scenes.splat_scene import TRAINED_ON, write_subject

HELD_OUT = "222200001"
CHANGES = {"width": 16, "upsampler_width": 8, "mouth_points": 50, "views_per_step": 1}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject"))


def run(monkeypatch: pytest.MonkeyPatch, subject: Path, output: Path, held_out: str) -> None:
    overlay = output.with_suffix(".yaml")
    overlay.write_text(yaml.safe_dump(CHANGES))
    words = f"x train --capture {subject}/capture --face {subject}/face --sdf {subject}/sdf "
    words += f"--output {output} --settings {overlay} --profile demo --size 64 --steps 2 "
    words += f"--timesteps 2 --parts-at-end --held-out {held_out}"
    monkeypatch.setattr(sys, "argv", words.split())
    convergence.main()


def test_each_set_is_measured_as_a_whole_and_at_the_end_in_parts(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, subject, tmp_path / "curve.csv", HELD_OUT)
    table = pd.read_csv(tmp_path / "curve.csv")
    assert set(table["set"]) == {"seen", "free", "free views", "views"}
    assert (table[table["step"] == 0]["region"] == WHOLE).all()
    last = table[table["step"] == 2].set_index("region")
    for _, own in last.groupby("set"):
        for column in ("error_fraction", "area_fraction"):
            # the parts are disjoint and leave nothing out; sums of float32
            assert own.loc[list(DISJOINT), column].sum() == pytest.approx(1, abs=1e-5)
    convergence_lines = convergence.panel(
        table[(table["set"] == "free") & (table["region"] == WHOLE)], "psnr_db", "free", 0, 0
    )
    assert convergence_lines.count("<polyline") == 1


def test_a_timestep_that_only_held_out_cameras_show_is_not_trained_on(
    subject: Path, tmp_path: Path
) -> None:
    shutil.copytree(subject, tmp_path / "subject")
    path = tmp_path / "subject" / "capture" / "masks" / "EXP-1.csv"
    table = pd.read_csv(path, dtype={"camera": str})
    table.loc[(table["timestep"] == 1) & (table["camera"] != HELD_OUT), "failed"] = 1
    table.to_csv(path, index=False)
    options = argparse.Namespace(
        **{name: tmp_path / "subject" / name for name in ("capture", "face", "sdf")},
        held_out=[HELD_OUT], seed=0, size=64, timesteps=4, method="avatar", profile="demo",
        settings=tmp_path / "changes.yaml",
    )  # fmt: skip
    options.settings.write_text(yaml.safe_dump(CHANGES))
    settings = convergence.read_settings(options)
    device = torch.device("cpu")
    with convergence.make_training(options, settings, device) as training:
        assert training.frames.timesteps == (0, 2, 3)
        for step in range(8):  # of three timesteps each is seen
            training.step(step)
    views = convergence.read_sets(options, settings, device)[-1]
    assert (views.name, views.timesteps) == ("views", [0, 1, 2, 3])


def test_a_stage_one_that_knows_a_held_out_camera_is_refused(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"held out: {TRAINED_ON[0]}; train another"):
        run(monkeypatch, subject, tmp_path / "curve.csv", TRAINED_ON[0])
    path = subject / "sdf" / "model.yaml"
    text = path.read_text()
    content = yaml.safe_load(text)
    del content["seen"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="does not say which cameras"):
        run(monkeypatch, subject, tmp_path / "curve.csv", HELD_OUT)
    path.write_text(text)
