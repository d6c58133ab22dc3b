"""Faults planted in the subject of `small_setup`; each returns what is said about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from eavatar.landmark_indices import MIRROR
from tests.scenes.small_capture import INTRINSICS, SERIALS, grey_frames, write_video
from tests.scenes.small_setup import FRAMES

Change = Callable[[np.ndarray], np.ndarray]
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
    return "model.h5 does not exist; check the path. Get BFM 2017"


def with_a_model_of_another_format(root: Path) -> str:
    (root / "model.h5").write_bytes(b"\x80\x04 a pickle, as FLAME comes in")
    return "model.h5"


def with_landmarks_of_another_shape(root: Path) -> str:
    return _change_landmarks(root, lambda array: array[:, :, :51], "points have shape")


def with_landmarks_of_too_few_frames(root: Path) -> str:
    return _change_landmarks(root, lambda array: array[:1], "covers 1 video frames")


def with_landmarks_of_too_many_frames(root: Path) -> str:
    return _change_landmarks(root, lambda array: np.repeat(array, 3, axis=0), "covers 12 video")


def with_landmarks_of_the_stored_size(root: Path) -> str:
    sentence = "they seem to be in pixels of the stored 220×320 images"
    return _change_points(root, lambda points: points / 10, sentence)


def with_landmarks_of_half_the_size(root: Path) -> str:
    sentence = "they seem to be in pixels of images of half the size"
    return _change_points(root, lambda points: points / 2, sentence)


def with_landmarks_of_the_frames(root: Path) -> str:
    """In pixels of what `ingest` makes: of the demo's sizes, the crop at 256 pixels."""
    sentence = "they seem to be in pixels of the cropped 256×256 frames"
    return _change_points(root, lambda points: (points - (-200, 304)) * 256 / 2600, sentence)


def with_landmarks_outside_the_crop(root: Path) -> str:
    sentence = "100% of the points lie outside the crop of the images; give points in pixels"
    return _change_points(root, lambda points: points + 3000, sentence)


def with_landmarks_of_exchanged_sides(root: Path) -> str:
    sentence = "they are not in iBUG's order"
    return _change_landmarks(root, lambda array: array[:, :, list(MIRROR)], sentence)


def with_landmarks_of_exchanged_cameras(root: Path) -> str:
    return _change_landmarks(
        root, lambda array: array[:, [1, 0, 2]], "rays to a landmark miss each other"
    )


def with_landmarks_of_a_small_head(root: Path) -> str:
    """Half as large about the centre of the image, where the optical axes meet."""
    centre = INTRINSICS[:2, 2]
    sentence = "they make a head of 0.05 m to the unit, outside face.fit.head_scale 0.08 to 0.12"
    return _change_points(root, lambda points: centre + (points - centre) / 2, sentence)


def with_missed_faces_in_one_point(root: Path) -> str:
    """Zeros are how some detectors write a face that was not found."""
    mark = np.arange(FRAMES)[:, None, None, None] > 2
    sentence = "faces lie in one point; mark what was not found by confidence 0"
    return _change_points(root, lambda points: np.where(mark, 0, points), sentence)


def with_landmarks_without_confidence(root: Path) -> str:
    return _change_landmarks(root, np.zeros_like, "no landmark has a confidence above 0")


def with_confidences_in_percent(root: Path) -> str:
    sentence = "FREE.npz has confidences from 100 to 100; scale them"
    return _change(root, {"confidence": lambda array: array * 100}, sentence)


def with_a_camera_named_twice(root: Path) -> str:
    sentence = "FREE.npz names a camera twice"
    return _change(root, {"cameras": lambda names: names[[0, 0, 2]]}, sentence)


def _change_points(root: Path, change: Change, sentence: str) -> str:
    return _change(root, {"points": change}, sentence)


def _change_landmarks(root: Path, change: Change, sentence: str) -> str:
    return _change(root, {"points": change, "confidence": change}, sentence)


def _change(root: Path, changes: dict[str, Change], sentence: str) -> str:
    """Rewrite arrays of FREE's provided landmarks."""
    path = root / "landmarks/FREE.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changes.items()})
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
    with_landmarks_of_too_many_frames,
    with_landmarks_of_the_stored_size,
    with_landmarks_of_half_the_size,
    with_landmarks_of_the_frames,
    with_landmarks_outside_the_crop,
    with_landmarks_of_exchanged_sides,
    with_landmarks_of_exchanged_cameras,
    with_landmarks_of_a_small_head,
    with_missed_faces_in_one_point,
    with_landmarks_without_confidence,
    with_confidences_in_percent,
    with_a_camera_named_twice,
    without_landmarks,
    without_a_plate,
]
