"""`check`: green on a healthy capture, one sentence and status 2 for each planted fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eavatar.__main__ import main
from eavatar.capture.demo import demo_capture
from eavatar.settings import DemoSettings, read_config

CONFIG = Path(__file__).parents[1] / "config"
SERIAL = "222200037"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("capture")
    settings = DemoSettings(timesteps=2, held_out_timesteps=2, image_scale=0.0625)
    demo_capture(settings, 0, folder / "raw", folder / "truth")
    return folder / "raw"


@pytest.fixture
def raw(healthy, tmp_path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "raw"))


def check(raw: Path, **changed: Path) -> int:
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    places = {
        "capture": raw,
        "morphable-model": raw / "morphable_model.h5",
        "landmarks": raw / "landmarks",
        "output": raw / "check.txt",
    } | changed
    blocks = {
        "settings": config.capture.ingest,
        "matte-settings": config.capture.matte,
        "landmark-settings": config.face.landmarks,
        "prior-settings": config.prior.generate,
    }
    words = [f"--{name}={block.model_dump_json()}" for name, block in blocks.items()]
    return main(["check", *words, *(f"--{name}={path}" for name, path in places.items())])


def without_a_video(raw: Path) -> str:
    (raw / f"sequences/FREE/images/cam_{SERIAL}.mp4").unlink()
    return f"the video of camera {SERIAL} is missing"


def with_a_truncated_video(raw: Path) -> str:
    video = raw / f"sequences/EXP-1-head/images/cam_{SERIAL}.mp4"
    video.write_bytes(video.read_bytes()[:-2000])
    return f"EXP-1-head/images/cam_{SERIAL}.mp4"


def without_a_calibrated_serial(raw: Path) -> str:
    path = raw / "calibration/camera_params.json"
    content = json.loads(path.read_text())
    del content["world_2_cam"][SERIAL]
    path.write_text(json.dumps(content))
    return f"the calibration lacks camera {SERIAL}"


def with_a_model_of_another_format(raw: Path) -> str:
    (raw / "morphable_model.h5").write_bytes(b"\x80\x04 a pickle, as FLAME comes in")
    return "morphable_model.h5"


def with_landmarks_of_another_shape(raw: Path) -> str:
    path = raw / "landmarks/FREE.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["points"] = arrays["points"][:, :, :51]
    np.savez(path, **arrays)
    return "points have shape"


def with_landmarks_of_too_few_frames(raw: Path) -> str:
    path = raw / "landmarks/FREE.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays |= {name: arrays[name][:1] for name in ("points", "confidence")}
    np.savez(path, **arrays)
    return "covers 1 video frames of 2"


def without_a_plate(raw: Path) -> str:
    (raw / f"sequences/BACKGROUND/image_{SERIAL}.jpg").unlink()
    return f"no plate for camera {SERIAL}"


FAULTS = [
    without_a_video,
    with_a_truncated_video,
    without_a_calibrated_serial,
    with_a_model_of_another_format,
    with_landmarks_of_another_shape,
    with_landmarks_of_too_few_frames,
    without_a_plate,
]


def test_a_healthy_capture_is_listed(raw):
    assert check(raw) == 0
    assert "16 cameras" in (raw / "check.txt").read_text()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_status_2(raw, capsys, fault):
    sentence = fault(raw)
    assert check(raw) == 2
    printed = capsys.readouterr().err.strip()
    assert sentence in printed
    assert "\n" not in printed
    assert not (raw / "check.txt").exists()
