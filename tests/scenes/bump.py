"""A made-up bump of a face with a known texture, in five cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.face.morphable import MorphableModel
from eavatar.face.refine import FacePose, SharedFace, to_world
from eavatar.io import Sequences, Tracking, write_cameras, write_sequences

SIDE, SCALE = 200, 0.1


def bump() -> tuple[MorphableModel, np.ndarray]:
    """A dome with a nose, 120 mm wide, two modes of identity and two of expression; its colours."""
    axis = np.linspace(-1, 1, 61)
    across, up = (side.ravel() for side in np.meshgrid(axis, axis))
    depth = 0.5 * (1 - across**2 - up**2) + 0.2 * np.exp(-((across**2 + up**2) / 0.05))
    mean = np.stack([0.6 * across, 0.6 * up, 0.5 * depth], axis=1).astype(np.float32)
    faces = Delaunay(np.stack([across, up], axis=1)).simplices
    turned = np.cross(mean[faces[:, 1]] - mean[faces[:, 0]], mean[faces[:, 2]] - mean[faces[:, 0]])
    faces[turned[:, 2] < 0] = faces[turned[:, 2] < 0][:, ::-1]
    modes = np.zeros((len(mean), 3, 4), np.float32)
    modes[:, 2, 0] = 0.05 * np.cos(3 * across)
    modes[:, 2, 1] = 0.05 * np.sin(3 * up)
    modes[:, 2, 2] = 0.05 * np.exp(-((up + 0.5) ** 2 + across**2) / 0.1)
    modes[:, 2, 3] = 0.05 * np.exp(-((up - 0.5) ** 2 + across**2) / 0.1)
    grid = np.linspace(8, 52, 9).round().astype(int)
    landmarks = (61 * grid[:, None] + grid).ravel()[:68]
    random = np.random.default_rng(0)
    noise = gaussian_filter(random.normal(0, 1, (61, 61, 3)), (1.5, 1.5, 0)).reshape(-1, 3)
    colours = (0.5 + 0.15 * noise / noise.std()).clip(0.05, 0.95).astype(np.float32)
    model = MorphableModel(
        mean, modes[..., :2], modes[..., 2:], faces.astype(np.int64), landmarks, colours
    )
    return model, colours


def arc() -> dict[str, Camera]:
    """Five cameras 1 m in front, 50 degrees from the first to the last."""
    intrinsics = np.array([[1100.0, 0, SIDE / 2], [0, 1100, SIDE / 2], [0, 0, 1]])
    cameras = {}
    for number, angle in enumerate(np.linspace(-0.44, 0.44, 5)):
        pose = np.eye(4)
        pose[:3, :3] = np.diag([1.0, -1, -1]) @ Rotation.from_rotvec([0, -angle, 0]).as_matrix()
        pose[2, 3] = 1.0
        cameras[f"{number}"] = Camera(intrinsics, pose, SIDE, SIDE)
    return cameras


def draw(camera: Camera, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> tuple:
    """Image and mask: triangles from far to near, each in the mean colour of its corners."""
    pixels, depth = camera.project(vertices)
    image = np.zeros((4 * SIDE, 4 * SIDE, 3), np.uint8)
    mask = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    for face in faces[depth[faces].mean(axis=1).argsort()[::-1]]:
        corners = (4 * pixels[face] * 16 - 8).round().astype(np.int32)
        shade = (255 * colours[face].mean(axis=0)).tolist()
        cv2.fillConvexPoly(image, corners, shade, shift=4)
        cv2.fillConvexPoly(mask, corners, 255, shift=4)
    size = (SIDE, SIDE)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.resize(mask, size)


def write_capture(
    root: Path,
    model: MorphableModel,
    face: SharedFace,
    tracks: dict[str, list[FacePose]],
    paint: dict[str, list[np.ndarray]] | None = None,
) -> None:
    """Frames, masks, cameras and indices of sequences given as lists of poses.

    The colours (V, 3) are the model's, or those that are given of each timestep.
    """
    cameras = arc()
    write_cameras(root / "cameras.json", cameras)
    test = tuple(name for name in tracks if name == "FREE")
    train = tuple(name for name in tracks if name not in test)
    write_sequences(root / "sequences.json", Sequences(train, test))
    (root / "masks").mkdir()
    for name, poses in tracks.items():
        rows = [f"{t},{serial}" for t in range(len(poses)) for serial in cameras]
        (root / f"{name}.csv").write_text("\n".join(["timestep,camera", *rows]) + "\n")
        (root / "masks" / f"{name}.csv").write_text("timestep,camera,failed\n")
        for timestep, pose in enumerate(poses):
            shape = model.vertices(face.identity.astype(np.float32))
            shape = shape + model.expression_basis @ pose.expression
            world = to_world(face, pose, shape)
            for serial, camera in cameras.items():
                colours = paint[name][timestep] if paint else model.colours
                image, mask = draw(camera, world, model.faces, colours)
                for folder, content, kind in (("", image, "jpg"), ("masks", mask, "png")):
                    path = root / folder / name / serial / f"{timestep:05d}.{kind}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), content)


def track_of(model: MorphableModel, face: SharedFace, poses: list[FacePose]) -> Tracking:
    """The contract's record of some poses."""
    shapes = [model.vertices(face.identity.astype(np.float32)) for _ in poses]
    moved = [
        to_world(face, pose, (shape + model.expression_basis @ pose.expression))
        for pose, shape in zip(poses, shapes, strict=True)
    ]
    arrays = (
        np.stack([pose.expression for pose in poses]),
        np.stack([Rotation.from_matrix(pose.rotation).as_rotvec() for pose in poses]),
        np.stack([pose.translation for pose in poses]),
        np.stack([vertices[model.landmark_vertices] for vertices in moved]),
        np.zeros((len(poses), 5)),
    )
    return Tracking(*(array.astype(np.float32) for array in arrays))


def random_poses(seed: int, count: int) -> list[FacePose]:
    """Small turns and moderate expressions."""
    random = np.random.default_rng(seed)
    return [
        FacePose(
            Rotation.from_rotvec(random.normal(0, 0.1, 3)).as_matrix(),
            random.normal(0, 0.003, 3),
            random.normal(0, 0.7, 2),
        )
        for _ in range(count)
    ]
