"""A head that is two balls before a plate, in five cameras, and looks about; its lids are landmarks
alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from eavatar.avatar.base_motion import EYEBALL, Eyeball
from eavatar.face.morphable import MorphableModel
from eavatar.io import (
    ExpressionBasis,
    Identity,
    Mesh,
    Sequences,
    Tracking,
    write_arrays,
    write_cameras,
    write_mesh,
    write_sequences,
)
from eavatar.landmark_indices import LEFT_EYE, RIGHT_EYE
from tests.scenes.bump import SCALE, arc, draw
from tests.scenes.carrier import face_landmarks
from tests.scenes.splat_scene import sphere

LOOKS = {  # yaw and pitch, degrees
    "EXP-2-eyes": np.array([[0, 0], [20, 2], [-18, 4], [3, 10], [-4, -9], [9, -5], [-10, 0]]),
    "FREE": np.array([[12, 6], [-7, -4], [0, 3]]),
}
IRIS = 0.5  # radians
PLATE = np.array([[-1.0, -1, 0.5], [1, -1, 0.5], [1, 1, 0.5], [-1, 1, 0.5]])


def looking_model() -> MorphableModel:
    """The plate, and a vertex for each landmark."""
    landmarks = face_landmarks()
    vertices = np.concatenate([PLATE, landmarks.numpy()]).astype(np.float32)
    still = np.zeros((*vertices.shape, 1), np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return MorphableModel(vertices, still, still, faces, 4 + np.arange(68))


def eyeballs(look: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and colours of both balls that look somewhere (yaw, pitch in degrees)."""
    ball = sphere(1500).numpy()
    faces = ConvexHull(ball).simplices
    yaw, pitch = look
    front = Rotation.from_euler("YX", [yaw, -pitch], degrees=True).apply([0.0, 0, 1])
    dark = np.arccos((ball @ front).clip(-1, 1)) < IRIS
    colours = np.where(dark[:, None], [0.2, 0.25, 0.3], [0.75, 0.72, 0.7])
    landmarks = face_landmarks()
    centres = [Eyeball.of(landmarks[ring]).centre.numpy() for ring in (RIGHT_EYE, LEFT_EYE)]
    return (
        np.concatenate([centre + EYEBALL * ball for centre in centres]),
        np.concatenate([faces, faces + len(ball)]),
        np.concatenate([colours, colours]),
    )


def write_looking(root: Path) -> Path:
    """``capture`` and ``refine``, the tracking exact; returns the folder of both."""
    model, cameras = looking_model(), arc()
    capture, face = root / "capture", root / "refine"
    write_cameras(capture / "cameras.json", cameras)
    write_sequences(capture / "sequences.json", Sequences(("EXP-2-eyes",), ("FREE",)))
    write_mesh(face / "neutral.ply", Mesh(model.mean, model.faces))
    landmarks = model.mean[model.landmark_vertices]
    identity = Identity(np.zeros(1, np.float32), np.array(SCALE, np.float32), landmarks)
    write_arrays(face / "identity.npz", identity)
    write_arrays(face / "expression_basis.npz", ExpressionBasis(model.expression_basis))
    for name, looks in LOOKS.items():
        (capture / "masks" / name).mkdir(parents=True)
        (capture / "masks" / f"{name}.csv").write_text("timestep,camera,failed\n")
        turns = Rotation.from_rotvec(
            np.random.default_rng(len(looks)).normal(0, 0.1, (len(looks), 3))
        )
        for timestep, (look, turn) in enumerate(zip(looks, turns, strict=True)):
            balls, faces, colours = eyeballs(look)
            vertices = SCALE * turn.apply(np.concatenate([PLATE, balls]))
            corners = np.concatenate([model.faces, faces + len(PLATE)])
            paint = np.concatenate([np.tile([0.4, 0.5, 0.7], (len(PLATE), 1)), colours])
            for serial, camera in cameras.items():
                image, mask = draw(camera, vertices, corners, paint)
                for folder, content, kind in (("", image, "jpg"), ("masks", mask, "png")):
                    path = capture / folder / name / serial / f"{timestep:05d}.{kind}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), content)
        parts = (
            np.zeros((len(looks), 1)),
            turns.as_rotvec(),
            np.zeros((len(looks), 3)),
            np.stack([SCALE * turn.apply(landmarks) for turn in turns]),
            np.zeros((len(looks), len(cameras))),
        )
        tracking = Tracking(*(part.astype(np.float32) for part in parts))
        write_arrays(face / "tracking" / f"{name}.npz", tracking)
    return root
