"""`check`: green on a healthy capture, all faults in one line and status 2 on a broken one."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from eavatar.__main__ import main
from eavatar.settings import read_config
from tests.scenes import CONFIG
from tests.scenes.small_capture import SERIALS, grey_frames, write_video
from tests.scenes.small_setup import write_subject

SERIAL = SERIALS[0]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject") / "074")


@pytest.fixture
def root(healthy, tmp_path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "074"))


def check(root: Path) -> int:
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    places = {
        "capture": root / "capture",
        "morphable-model": root / "model.h5",
        "landmarks": root / "landmarks",
        "output": root / "check.txt",
    }
    blocks = {
        "settings": config.capture.ingest,
        "matte-settings": config.capture.matte,
        "landmark-settings": config.face.landmarks,
        "prior-settings": config.prior.generate,
    }
    words = [f"--{name}={block.model_dump_json()}" for name, block in blocks.items()]
    return main(["check", *words, *(f"--{name}={path}" for name, path in places.items())])


def video(root: Path, sequence: str, serial: str = SERIAL) -> Path:
    return root / f"capture/sequences/{sequence}/images/cam_{serial}.mp4"


def without_a_video(root: Path) -> str:
    video(root, "FREE").unlink()
    return f"the video of camera {SERIAL} is missing from FREE"


def with_a_truncated_video(root: Path) -> str:
    path = video(root, "EXP-1-head")
    path.write_bytes(path.read_bytes()[:-200])
    return f"{path} is not a complete video"


def with_a_shorter_video(root: Path) -> str:
    path = write_video(video(root, "FREE", SERIALS[1]), grey_frames(3))
    return f"{path} has 3 frames"


def with_a_damaged_last_frame(root: Path) -> str:
    path = video(root, "EXP-2-eyes")
    with av.open(str(path)) as container:
        last = max(container.streams.video[0].index_entries, key=lambda entry: entry.pos)
        start, size = last.pos, last.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    return f"the last frame of {path}"


def without_a_calibrated_serial(root: Path) -> str:
    path = root / "capture/calibration/camera_params.json"
    content = json.loads(path.read_text())
    del content["world_2_cam"][SERIAL]
    path.write_text(json.dumps(content))
    return f"the calibration lacks camera {SERIAL}"


def without_a_model(root: Path) -> str:
    (root / "model.h5").unlink()
    return "model.h5 does not exist. Get BFM 2017"


def with_a_model_of_another_format(root: Path) -> str:
    (root / "model.h5").write_bytes(b"\x80\x04 a pickle, as FLAME comes in")
    return "model.h5"


def with_landmarks_of_another_shape(root: Path) -> str:
    return _change_landmarks(root, lambda array: array[:, :, :51], "points have shape")


def with_landmarks_of_too_few_frames(root: Path) -> str:
    return _change_landmarks(root, lambda array: array[:1], "covers 1 video frames of 4")


def _change_landmarks(root: Path, change, sentence: str) -> str:
    path = root / "landmarks/FREE.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays |= {name: change(arrays[name]) for name in ("points", "confidence")}
    np.savez(path, **arrays)
    return sentence


def without_landmarks(root: Path) -> str:
    shutil.rmtree(root / "landmarks")
    return f"the landmarks {root}/landmarks does not exist"


def without_a_plate(root: Path) -> str:
    (root / f"capture/sequences/BACKGROUND/image_{SERIAL}.jpg").unlink()
    return f"no background plate for camera {SERIAL}"


FAULTS = [
    without_a_video,
    with_a_truncated_video,
    with_a_shorter_video,
    with_a_damaged_last_frame,
    without_a_calibrated_serial,
    without_a_model,
    with_a_model_of_another_format,
    with_landmarks_of_another_shape,
    with_landmarks_of_too_few_frames,
    without_landmarks,
    without_a_plate,
]


def test_a_healthy_capture_is_listed(root):
    assert check(root) == 0
    lines = (root / "check.txt").read_text().splitlines()
    assert any("FREE" in line and "3 cameras × 4 frames" in line for line in lines)
    assert not any("wrong" in line or "missing" in line for line in lines)


def message(printed: str) -> str:
    """The message alone, without the progress bar before it."""
    return printed[printed.index("eavatar check:") :].strip()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_status_2(root, capsys, fault):
    sentence = fault(root)
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert sentence in printed
    assert "\n" not in printed
    assert "inputs are faulty" not in printed  # it alone
    assert not (root / "check.txt").exists()


def test_all_faults_are_told_at_once(root, capsys):
    sentences = [
        without_a_video(root), with_a_truncated_video(root), with_a_damaged_last_frame(root),
        with_landmarks_of_too_few_frames(root), without_a_plate(root), without_a_model(root),
    ]  # fmt: skip
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert f"{len(sentences)} inputs are faulty" in printed
    assert all(sentence in printed for sentence in sentences)
