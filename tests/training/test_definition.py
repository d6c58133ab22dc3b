"""What makes a training another one, and what does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eavatar.data.frames import FrameSet
from eavatar.settings import SplatSettings, read_config
from eavatar.training.definition import define
from tests.scenes import CONFIG
from tests.scenes.splat_scene import write_subject

SETTINGS = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").splat


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    return write_subject(tmp_path / "subject", timesteps=2, views=2, vertices=100)


def definition(subject: Path, settings: SplatSettings = SETTINGS) -> dict[str, str]:
    frames = FrameSet.read(subject / "capture", subject / "face", "train", 64)
    return define("splat", settings, 0, frames, sdf=subject / "sdf" / "model.safetensors")


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in {**one, **other} if one.get(name) != other.get(name)}


def test_settings_are_named_but_for_run_and_steps(subject: Path) -> None:
    before = definition(subject)
    run = SETTINGS.run.model_copy(
        update={
            "image_memory_gb": 0.5,
            "checkpoint_every": 7,
            "compile": not SETTINGS.run.compile,
            "mixed_precision": not SETTINGS.run.mixed_precision,
        }
    )
    assert {*run.model_fields_set} == set(type(run).model_fields)  # each of them is changed
    free = SETTINGS.model_copy(update={"run": run, "steps": SETTINGS.steps + 1})
    assert definition(subject, free) == before
    split = SETTINGS.split.model_copy(update={"threshold": 0.3})
    bound = SETTINGS.model_copy(update={"split": split, "width": 8})
    assert changed(definition(subject, bound), before) == {"splat.split.threshold", "splat.width"}


def test_inputs_count_by_what_they_hold(subject: Path, tmp_path: Path) -> None:
    before = definition(subject)
    moved = shutil.copytree(subject, tmp_path / "elsewhere")
    assert definition(moved) == before
    mask = next((moved / "capture/masks/EXP-1").rglob("*.png"))
    mask.write_bytes(mask.read_bytes() + b"another")
    assert changed(definition(moved), before) == {"frames"}
    model = moved / "sdf/model.safetensors"
    model.write_bytes(model.read_bytes() + b"another")
    assert changed(definition(moved), before) == {"frames", "sdf"}
    frames = FrameSet.read(subject / "capture", subject / "face", "train", 64)
    turned = replace(frames, rotation=frames.rotation + 1e-6)
    sdf = subject / "sdf/model.safetensors"
    assert changed(define("splat", SETTINGS, 0, turned, sdf=sdf), before) == {"tracking"}
