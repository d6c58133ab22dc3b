"""Results of a subject as far as drawing needs them: two cameras, a sequence, a small avatar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.avatar.files import write_avatar
from eavatar.cameras import Camera
from eavatar.io import Tracking, write_arrays, write_cameras
from eavatar.settings import Settings
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar

TIMESTEPS = 3


def make_camera(angle: float) -> Camera:
    """1 m from the origin, turned around the vertical axis; ingested at twice the final size."""
    turn = Rotation.from_euler("y", angle, degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[2, 3] = np.diag([1.0, -1, -1]) @ turn.T, 1.0
    focal = 8.0 * SIZE
    intrinsics = np.array([[focal, 0, SIZE], [0, focal, SIZE], [0, 0, 1]])
    return Camera(intrinsics, matrix, 2 * SIZE, 2 * SIZE)


def make_tracking() -> Tracking:
    random = np.random.default_rng(0)
    arrays = [
        3 * random.normal(size=(TIMESTEPS, EXPRESSIONS)),
        0.1 * random.normal(size=(TIMESTEPS, 3)),
        np.zeros((TIMESTEPS, 3)),
        np.zeros((TIMESTEPS, 68, 3)),
        np.zeros((TIMESTEPS, 2)),
    ]
    return Tracking(*(array.astype(np.float32) for array in arrays))


def write_results(root: Path, variant: str = "full") -> Path:
    """The results, with an avatar of that name; returns the folder."""
    cameras = {"222200036": make_camera(40), "222200037": make_camera(-5)}
    write_cameras(root / "capture" / "cameras.json", cameras)
    write_arrays(root / "face" / "tracking" / "FREE.npz", make_tracking())
    write_avatar(root / "splat" / variant, make_avatar(), Settings())
    return root
