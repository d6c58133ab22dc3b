"""A sheet, a capture of small grey videos, a morphable model and landmarks: all a run needs."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from eavatar.cameras import Camera
from eavatar.capture.nersemble import FULL_SIZE
from eavatar.face.layout import AVERAGE_FACE
from tests.scenes.small_capture import (
    HEIGHT,
    INTRINSICS,
    SERIALS,
    WIDTH,
    grey_frames,
    world_to_camera,
    write_capture,
)

SEQUENCES = ("EXP-1-head", "EXP-2-eyes", "FREE")
FRAMES = 4


def write_model(path: Path) -> Path:
    """A BFM 2017 of a few vertices, millimetres."""
    random, vertices = np.random.default_rng(0), 240
    others = random.normal(scale=40, size=(vertices - len(AVERAGE_FACE), 3))
    means = {
        "shape": np.concatenate([AVERAGE_FACE, others]).ravel(),
        "expression": np.zeros(3 * vertices),
        "color": np.full(3 * vertices, 0.5),
    }
    with h5py.File(path, "w") as file:
        for group, count in (("shape", 4), ("expression", 3), ("color", 1)):
            basis = np.linalg.qr(random.normal(size=(3 * vertices, count)))[0]
            file[f"{group}/model/mean"] = means[group]
            file[f"{group}/model/pcaBasis"] = basis
            file[f"{group}/model/pcaVariance"] = np.full(count, 900.0)
        file["shape/representer/cells"] = np.arange(vertices).reshape(-1, 3).T
        file["landmarks68/vertex_index"] = np.arange(68)
    return path


def face_points() -> np.ndarray:
    """(C, 68, 2) where the cameras see an average face in the origin that looks along z."""
    cameras = [
        Camera(INTRINSICS, world_to_camera(0.5 * (index - 1)), *FULL_SIZE)
        for index in range(len(SERIALS))
    ]
    return np.stack([camera.project(AVERAGE_FACE / 1000)[0] for camera in cameras])


def write_landmarks(folder: Path) -> Path:
    """Provided landmarks of every sequence."""
    folder.mkdir()
    shape = (FRAMES, len(SERIALS), 68)
    points, confidence = np.broadcast_to(face_points(), (*shape, 2)), np.ones(shape)
    for sequence in SEQUENCES:
        np.savez(folder / f"{sequence}.npz", cameras=SERIALS, points=points, confidence=confidence)
    return folder


def write_subject(root: Path) -> Path:
    """``capture``, ``landmarks`` and ``model.h5`` of one subject in a new folder."""
    plate = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    write_capture(root / "capture", grey_frames(FRAMES), SEQUENCES, plate)
    write_landmarks(root / "landmarks")
    write_model(root / "model.h5")
    return root
