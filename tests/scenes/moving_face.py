"""A made-up family of faces; the motion and the detections of one, with the truth of both."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.face.fit import SequenceMotion
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.io import Landmarks
from eavatar.settings import FitSettings

IDENTITY, EXPRESSION, SCALE = 5, 4, 0.1
SETTINGS = FitSettings(
    identity_components=IDENTITY,
    expression_components=EXPRESSION,
    identity_weight=1.0,
    expression_weight=1.0,
    smoothness_weight=0.1,
    landmark_bias=0.015,
    detection_noise=0.002,
    outlier_distance=0.01,
    iterations=50,
    head_scale=(0.08, 0.12),
    min_supported=0.5,
)


def write_model(path: Path) -> MorphableModel:
    """A face and a shell around it, 150 mm wide, with smooth random deformations."""
    random = np.random.default_rng(0)
    across, up = (random.uniform(-1, 1, (2, 200)) * 0.9).round(3)
    depth = np.sqrt(np.maximum(0, 2 - across**2 - up**2)) - 1.2
    mean = np.stack([75 * across, 85 * up, 70 * depth], axis=1)
    mean[:68] = AVERAGE_FACE
    across, up = mean[:, 0] / 75, mean[:, 1] / 85
    frequencies = random.normal(0, 1.5, (2, IDENTITY + EXPRESSION))
    waves = np.sin(np.stack([across, up], axis=1) @ frequencies + random.uniform(0, 6, 9))
    basis = waves[:, None] * random.normal(0, 1, (3, 9))
    # the mouth and brows move, the cheeks do not: expression does not mimic pose
    basis[..., IDENTITY:] *= ((up < -0.3) | (up > 0.5))[:, None, None]
    basis = basis.reshape(600, 9)
    length = np.linalg.norm(basis, axis=0)
    variance = (length * 3.0) ** 2  # 3 mm where a wave has its full height
    with h5py.File(path, "w") as file:
        for group, part in (("shape", slice(IDENTITY)), ("expression", slice(IDENTITY, None))):
            file[f"{group}/model/mean"] = mean.ravel() * (group == "shape")
            file[f"{group}/model/pcaBasis"] = (basis / length)[:, part]
            file[f"{group}/model/pcaVariance"] = variance[part]
        file["shape/representer/cells"] = random.integers(0, 200, (3, 300))
        file["color/model/mean"] = np.full(600, 0.7)
        file["landmarks68/vertex_index"] = np.arange(68)
    return read_morphable_model(path)


def rig(turn: np.ndarray) -> dict[str, Camera]:
    """Eight cameras on an arc 1 m in front of the origin, in a world turned by ``turn``."""
    intrinsics = np.array([[800.0, 0, 128], [0, 800, 128], [0, 0, 1]])
    cameras = {}
    for number, angle in enumerate(np.linspace(-0.9, 0.9, 8)):
        pose = np.eye(4)
        look = np.diag([1.0, -1, -1]) @ Rotation.from_rotvec([0, -angle, 0]).as_matrix()
        pose[:3, :3], pose[2, 3] = look @ turn.T, 1.0
        cameras[f"2222000{number:02d}"] = Camera(intrinsics, pose, 256, 256)
    return cameras


def random_motion(
    model: MorphableModel, turn: np.ndarray, seed: int, count: int = 12
) -> SequenceMotion:
    """A head that turns by about half a radian while its expression changes."""
    random = np.random.default_rng(seed)
    phase = np.linspace(0, 3, count)[:, None]
    rotation = 0.4 * np.sin(phase * random.uniform(0.5, 1.5, 3) + random.uniform(0, 6, 3))
    translation = 0.02 * np.sin(phase + random.uniform(0, 6, 3)) @ turn.T
    expression = 1.5 * np.sin(phase * 1.3 + random.uniform(0, 6, EXPRESSION))
    matrices = turn @ Rotation.from_rotvec(rotation).as_matrix()
    relative = Rotation.from_matrix(matrices @ turn.T).as_rotvec()
    return SequenceMotion(turn, relative, translation, expression)


def detections(
    model: MorphableModel, motion: SequenceMotion, neutral: np.ndarray, cameras: dict[str, Camera]
) -> tuple[np.ndarray, Landmarks]:
    """True world landmarks, and noisy detections of them with outliers and missed faces."""
    random = np.random.default_rng(len(motion.rotation))
    face = neutral + np.einsum("lij,tj->tli", model.expression_basis[:68], motion.expression)
    world = SCALE * np.einsum("tij,tlj->tli", motion.matrices, face)
    world += motion.translation[:, None]
    points = np.stack([camera.project(world)[0] for camera in cameras.values()], axis=1)
    points += random.normal(0, 0.5, points.shape)
    outliers = random.random(points.shape[:3]) < 0.02
    points[outliers] += random.uniform(-60, 60, (outliers.sum(), 2))
    confidence = random.uniform(0.6, 1, points.shape[:3])
    confidence[random.random(points.shape[:2]) < 0.05] = 0
    confidence[4] = 0  # a timestep that no camera saw
    points[confidence == 0] = 0
    serials = np.array(list(cameras))
    return world, Landmarks(serials, points.astype(np.float32), confidence.astype(np.float32))
