"""Faults planted in the subject of `small_setup`; each returns what is said about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tests.scenes.small_capture import SERIALS, grey_frames, write_video

SERIAL = SERIALS[0]


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


def _change_calibration(root: Path, change: Callable[[NDArray], NDArray]) -> None:
    """Change the world-to-camera matrices (C, 4, 4)."""
    path = root / "capture/calibration/camera_params.json"
    content = json.loads(path.read_text())
    table = content["world_2_cam"]
    table.update(zip(table, change(np.array([*table.values()])).tolist(), strict=True))
    path.write_text(json.dumps(content))


def with_a_calibration_in_millimetres(root: Path) -> str:
    factors = np.ones((4, 4))
    factors[:3, 3] = 1000
    _change_calibration(root, lambda poses: poses * factors)
    return "would be plausible if its matrices were in millimetres"


def with_camera_to_world_matrices(root: Path) -> str:
    _change_calibration(root, np.linalg.inv)
    return "would be plausible if its matrices were camera-to-world matrices"


def with_intrinsics_of_half_the_size(root: Path) -> str:
    path = root / "capture/calibration/camera_params.json"
    content = json.loads(path.read_text())
    content["intrinsics"] = [[4100, 0, 550], [0, 4100, 802], [0, 0, 1]]
    path.write_text(json.dumps(content))
    return "as in intrinsics of an image of 1100×1604"


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
    with_a_calibration_in_millimetres,
    with_camera_to_world_matrices,
    with_intrinsics_of_half_the_size,
    without_a_model,
    with_a_model_of_another_format,
    with_landmarks_of_another_shape,
    with_landmarks_of_too_few_frames,
    without_landmarks,
    without_a_plate,
]
