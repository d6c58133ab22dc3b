"""Backends: a new one is one file, here this one, and every shipped record is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import Field

from eavatar.arrays import Image
from eavatar.backends import (
    LANDMARKS,
    MATTING,
    PRIORS,
    RENDERERS,
    UPSAMPLERS,
    LandmarkBackend,
    MattingBackend,
    Registry,
    WeightFile,
)
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import Shot, matte
from eavatar.data.images import read_grey
from eavatar.errors import UserError
from eavatar.face.landmarks import FaceNetwork, LandmarkJob, detect_in_views, detect_landmarks
from eavatar.io import Landmarks, read_arrays
from eavatar.preflight.check import Inputs, InputSettings, examine_inputs
from eavatar.preflight.doctor import examine
from eavatar.preflight.findings import Examination
from eavatar.settings import Config, MatteSettings, Settings, merge, read_config, validate
from tests.scenes import CONFIG, ROOT
from tests.scenes.small_capture import SERIALS, grey_frames, ingest_settings, write_capture

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())
REGISTRIES = (MATTING, LANDMARKS, PRIORS, UPSAMPLERS, RENDERERS)


# --- a new matting backend: all that somebody writes who adds one --------------------------------


class BrightSettings(Settings):
    """`capture.matte.bright`."""

    weights: Path
    threshold: int = Field(ge=0, le=255)


def matte_the_bright(shot: Shot) -> Iterator[Image]:
    """The person is what is bright."""
    threshold = shot.settings.own.threshold
    for image in shot.images():
        yield np.where(image.mean(axis=-1) > threshold, 255, 0).astype(np.uint8)


BRIGHT = MattingBackend(
    name="bright",
    run=matte_the_bright,
    instead="set capture.matte.backend to plate",
    settings=BrightSettings,
    weights=lambda own: (WeightFile(own.weights, "https://somewhere/bright", "MIT"),),
    packages=("no_such_package",),
    needs_plates=True,
)


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """The configuration with the new backend chosen."""
    monkeypatch.setitem(MATTING.added, "bright", BRIGHT)
    own = {"weights": f"{tmp_path}/bright.bin", "threshold": 90}
    return merge(BASE, {"capture": {"matte": {"backend": "bright", "bright": own}}})


def test_a_new_matting_backend_makes_masks(bright: dict[str, object], tmp_path: Path) -> None:
    settings = validate(Config, bright, "test").capture.matte
    raw = write_capture(tmp_path / "raw", grey_frames(4), sequences=("FREE",))
    calibrate(ingest_settings(), raw, tmp_path)
    ingest(ingest_settings(), raw, "FREE", tmp_path)
    matte(settings, ingest_settings(), tmp_path, "FREE", None, tmp_path / "masks")
    masks = [
        read_grey(tmp_path / f"masks/FREE/{SERIALS[0]}/{timestep:05d}.png") for timestep in range(4)
    ]
    # frames have levels of 60, 80, 100 and 120
    assert [int(mask[32, 32]) for mask in masks] == [0, 0, 255, 255]


def test_the_settings_of_a_new_backend_are_checked(bright: dict[str, object]) -> None:
    faulty = merge(bright, {"capture": {"matte": {"bright": {"threshold": 300}}}})
    with pytest.raises(UserError, match=r"'capture\.matte\.bright\.threshold': input should be"):
        validate(Config, faulty, "test")
    other = merge(BASE, {"capture": {"matte": {"backend": "dark"}}})
    with pytest.raises(UserError, match=r"it must be one of .*plate.*bright, not 'dark'"):
        validate(Config, other, "test")


def test_doctor_lists_what_a_new_backend_needs(
    bright: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without a sheet, so that only the machine is examined
    found = {finding.item: finding for finding in examine(json.dumps(bright), None, []).findings}
    weights, package = found["weights bright.bin"], found["package no_such_package"]
    assert (weights.status, package.status) == ("missing", "missing")
    assert "download https://somewhere/bright (MIT)" in weights.text
    assert all("or set capture.matte.backend to plate" in f.text for f in (weights, package))
    (tmp_path / "bright.bin").write_bytes(b"weights")
    again = {finding.item: finding for finding in examine(json.dumps(bright), None, []).findings}
    assert again["weights bright.bin"].status == "ok"


def test_a_new_backend_that_needs_plates_has_them_checked(
    bright: dict[str, object], tmp_path: Path
) -> None:
    config = validate(Config, bright, "test")
    capture = write_capture(tmp_path / "raw", grey_frames(2))
    blocks = InputSettings(
        config.capture.ingest,
        config.capture.matte,
        config.face.landmarks,
        config.prior.generate,
        config.face.fit.head_scale,
    )
    found = Examination()
    examine_inputs(found, blocks, Inputs(capture, None, None, None))
    (fault,) = found.faults
    assert fault.item == "plates" and "no background plate" in fault.text


# --- a new landmark backend -----------------------------------------------------------------------


class CentreSettings(Settings):
    """`face.landmarks.centre`."""

    size: int = Field(ge=1)


def detect_in_the_centre(job: LandmarkJob) -> tuple[np.ndarray, np.ndarray]:
    """A network that sees a face in the middle of every image, its points in a row."""
    size = job.settings.own.size

    def boxes(images: list[np.ndarray]) -> list[np.ndarray]:
        low, high = len(images[0]) / 2 - size, len(images[0]) / 2 + size
        return [np.array([[low, low, high, high]]) for _ in images]

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        along = np.linspace(0, 1, 68)[:, None]
        points = boxes[:, None, :2] * (1 - along) + boxes[:, None, 2:] * along
        return points, np.ones((len(images), 68))

    return detect_in_views(FaceNetwork(boxes, landmarks), job.frames, 64, 2)


def test_a_new_landmark_backend_leaves_the_views_to_the_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    centre = LandmarkBackend(
        name="centre",
        run=detect_in_the_centre,
        instead="set face.landmarks.backend to provided",
        settings=CentreSettings,
    )
    monkeypatch.setitem(LANDMARKS.added, "centre", centre)
    chosen = {"face": {"landmarks": {"backend": "centre", "centre": {"size": 20}}}}
    settings = validate(Config, merge(BASE, chosen), "test").face.landmarks
    raw = write_capture(tmp_path / "raw", grey_frames(2), sequences=("FREE",))
    calibrate(ingest_settings(), raw, tmp_path)
    ingest(ingest_settings(), raw, "FREE", tmp_path)
    detect_landmarks(settings, ingest_settings(), tmp_path, "FREE", None, tmp_path / "out.npz")
    found = read_arrays(Landmarks, tmp_path / "out.npz")
    assert found.points.shape == (2, len(SERIALS), 68, 2)
    np.testing.assert_allclose(found.points[0, 0, [0, 67]], [[12, 12], [52, 52]])


# --- those that are shipped -----------------------------------------------------------------------


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.setting)
def test_every_record_has_the_name_of_its_module_and_says_what_else_to_do(
    registry: Registry,
) -> None:
    assert len(registry) >= 2
    for name, backend in registry.items():
        assert backend.name == name
        assert backend.instead.startswith(f"set {registry.setting} to ")


def test_a_setting_that_names_no_backend_is_told_all_of_them() -> None:
    for registry in REGISTRIES:
        overlay: object = "magic"
        for key in reversed(registry.setting.split(".")):
            overlay = {key: overlay}
        assert isinstance(overlay, dict)
        with pytest.raises(UserError, match=f"'{registry.setting}': it must be one of") as caught:
            validate(Config, merge(BASE, overlay), "test")
        assert all(name in str(caught.value) for name in registry)


def test_only_the_settings_of_the_chosen_backend_are_needed_and_kept() -> None:
    """So that a change of another one's reruns nothing; but a fault in them is told."""
    matte = BASE["capture"]["matte"]
    common = {name: value for name, value in matte.items() if not isinstance(value, dict)}
    alone = MatteSettings.model_validate(common)
    assert MatteSettings.model_validate(matte) == alone
    assert alone.model_dump() == common and alone.own is None
    with pytest.raises(UserError, match=r"'rembg\.modell'"):
        validate(MatteSettings, {**common, "rembg": {"modell": "u2net"}}, "test")
    with pytest.raises(UserError, match="'rembg' is missing"):
        validate(MatteSettings, {**common, "backend": "rembg"}, "test")
    chosen = MatteSettings.model_validate({**matte, "backend": "rembg"})
    assert chosen.own.model == matte["rembg"]["model"]
    assert MatteSettings.model_validate_json(chosen.model_dump_json()) == chosen


def test_a_whole_configuration_keeps_the_chosen_backends_settings_as_json() -> None:
    config = read_config(CONFIG / "config.yaml")
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.face.landmarks.own.detector == "sfd"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"capture": {"matte": {"rembg_model": "u2net"}}}, "capture.matte.rembg.model"),
        ({"face": {"landmarks": {"detector": "sfd"}}}, "face.landmarks.face_alignment.detector"),
    ],
)
def test_a_setting_of_an_earlier_version_is_told_its_new_place(
    old: dict[str, object], new: str
) -> None:
    with pytest.raises(UserError, match=f"has moved to '{new}'") as caught:
        validate(Config, merge(BASE, old), "test")
    assert "\n" not in str(caught.value)


def test_the_workflow_is_parsed_without_heavy_packages() -> None:
    """Settings of all backends are read where only the workflow's own packages are installed."""
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    imports = re.findall(r"^from eavatar[\w.]* import (?:\([^)]*\)|.*)$", rules, re.MULTILINE)
    assert any("make_plans" in line for line in imports)
    code = f"""
import importlib.metadata, sys
from pathlib import Path
import yaml
before = set(sys.modules)
{chr(10).join(imports)}
from eavatar.backends import LANDMARKS, MATTING, PRIORS, RENDERERS, UPSAMPLERS
config = yaml.safe_load(Path("config/config.yaml").read_text())
plans, _ = make_plans(Path("config/subjects.csv"), config, {{}})
for plan in plans.values():
    list_parts(plan.subject, plan.config, plan.sequences)
records = [dict(kind) for kind in (LANDMARKS, MATTING, PRIORS, RENDERERS, UPSAMPLERS)]
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
packages = importlib.metadata.packages_distributions()
print(*sorted(name for name in loaded if name in packages))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    own = {"eavatar", "numpy", "pydantic", "pydantic_core", "yaml"}
    of_pydantic = {"annotated_types", "typing_extensions", "typing_inspection"}
    assert set(done.stdout.split()) <= own | of_pydantic


@pytest.mark.parametrize(("backend", "gpus"), [("provided", "0"), ("face_alignment", "1")])
def test_landmarks_that_are_provided_need_no_gpu(backend: str, gpus: str, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(CONFIG)
    tiny = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    chosen = merge(tiny, {"face": {"landmarks": {"backend": backend}}})
    (tmp_path / "tiny.yaml").write_text(json.dumps(chosen))
    (tmp_path / "subjects.csv").write_text("subject,capture,settings\ndemo,generated,tiny.yaml\n")
    command = ["-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run"]
    command += ["results/demo/face/landmarks/FREE.npz", "--config", "subjects=subjects.csv"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    job = done.stdout[done.stdout.index("rule detect_landmarks:") :]
    resources = re.search(r"resources: .*", job)
    assert resources and re.search(rf"\bgpu={gpus}\b", resources[0])
