"""What a calibration or a recording must have been like for the cameras to agree is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.causes import Evidence, check_agreement, check_scale, gather
from eavatar.face.landmarks import FaceNetwork, Frames, detect_in_views

OPENGL, UP = np.diag([1.0, -1, -1, 1]), np.diag([1.0, -1, 1, 1])
ARC, FEW, RING = np.linspace(-0.8, 0.8, 8), np.linspace(-0.5, 0.5, 3), np.arange(16) * np.pi / 8
INTRINSICS = np.array([[800.0, 0, 128], [0, 800, 128], [0, 0, 1]])
GATE = 2.56  # pixels: a hundredth of the image

Poses = np.ndarray


def make_rig(angles: np.ndarray) -> dict[str, Camera]:
    """Cameras 1 m around the origin, in two rows, in a world turned and moved away."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = Rotation.from_rotvec([0.2, 0.5, 0.1]).as_matrix(), [0.3, -1, 0.2]
    cameras = {}
    for index, angle in enumerate(angles):
        turn = Rotation.from_euler("xy", [(0.15, -0.4)[index % 2], -angle]).as_matrix()
        pose = np.eye(4)
        pose[:3, :3], pose[2, 3] = np.diag([1.0, -1, -1]) @ turn, 1.0
        cameras[str(index)] = Camera(INTRINSICS, pose @ world, 256, 256)
    return cameras


def record(cameras: dict[str, Camera], outliers: float = 0.0) -> Evidence:
    """Detections with a noise of half a pixel of a moving head, and some anywhere in the image."""
    random = np.random.default_rng(1)
    head = random.uniform(-0.08, 0.08, (68, 3))
    turns = Rotation.from_rotvec(random.normal(0, 0.2, (6, 3))).as_matrix()
    world = np.einsum("tij,lj->tli", turns, head) + random.normal(0, 0.01, (6, 1, 3))
    origin = np.linalg.inv(next(iter(cameras.values())).world_to_camera)[:3] @ [0, 0, 1, 1]
    points = np.stack([c.project(world + origin)[0] for c in cameras.values()], axis=1)
    points += random.normal(0, 0.5, points.shape)
    wrong = random.random(points.shape[:3]) < outliers
    points[wrong] = random.uniform(0, 256, (wrong.sum(), 2))
    confidence = np.ones(points.shape[:3])
    return gather(points, confidence, np.arange(len(cameras)), GATE)


def given_as(cameras: dict[str, Camera], to: Callable[[Poses], Poses]) -> dict[str, Camera]:
    return {
        name: replace(camera, world_to_camera=to(camera.world_to_camera))
        for name, camera in cameras.items()
    }


@pytest.mark.parametrize("angles", [ARC, FEW, RING], ids=["arc", "three", "ring"])
@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_a_right_calibration_passes(angles: np.ndarray, outliers: float) -> None:
    cameras = make_rig(angles)
    assert check_agreement(cameras, [record(cameras, outliers)]) == []


def test_faces_seen_from_behind_are_no_fault_of_the_calibration() -> None:
    """A detector sees faces in hair: eight of sixteen cameras around the head show anything."""
    cameras = make_rig(RING)
    evidence = record(cameras)
    behind = np.cos(RING) < 0
    random = np.random.default_rng(0)
    noise = random.uniform(60, 200, (6, 8, 1, 2)) + random.normal(0, 20, (6, 8, 17, 2))
    points = evidence.points.copy()
    points[:, behind] = noise
    outvoted = check_agreement(cameras, [replace(evidence, points=points)])
    assert set(outvoted) <= set(np.flatnonzero(behind).astype(str))


def to_opengl(pose: Poses) -> Poses:
    return OPENGL @ pose


def to_opengl_camera_to_world(pose: Poses) -> Poses:
    return np.linalg.inv(pose) @ OPENGL


def to_left_handed(pose: Poses) -> Poses:
    return UP @ pose @ UP


def to_left_up(pose: Poses) -> Poses:
    return np.diag([-1.0, -1, 1, 1]) @ pose


@pytest.mark.parametrize(
    ("angles", "given", "cause"),
    [
        (ARC, np.linalg.inv, "camera-to-world matrices, in place"),
        (FEW, np.linalg.inv, "camera-to-world matrices, in place"),
        (ARC, to_opengl, "of OpenGL axes"),
        (FEW, to_opengl, "of OpenGL axes"),
        (ARC, to_opengl_camera_to_world, "camera-to-world matrices of OpenGL axes"),
        (FEW, to_opengl_camera_to_world, "camera-to-world matrices of OpenGL axes"),
        (ARC, to_left_handed, "of left-handed axes"),
        (ARC, to_left_up, "of axes x left, y up"),
    ],
)
def test_another_meaning_of_the_matrices_is_named(
    angles: np.ndarray, given: Callable[[Poses], Poses], cause: str
) -> None:
    cameras = make_rig(angles)
    evidence = record(cameras)
    with pytest.raises(UserError, match=f"would if the calibration's matrices were {cause}"):
        check_agreement(given_as(cameras, given), [evidence])


def exchange(cameras: dict[str, Camera], first: str, second: str) -> dict[str, Camera]:
    return cameras | {first: cameras[second], second: cameras[first]}


@pytest.mark.parametrize(("first", "second"), [("2", "3"), ("0", "7")])
def test_two_exchanged_cameras_are_named(first: str, second: str) -> None:
    cameras = make_rig(ARC)
    with pytest.raises(UserError, match=f"cameras {first} and {second} are exchanged"):
        check_agreement(exchange(cameras, first, second), [record(cameras)])


def test_two_exchanged_cameras_of_three_are_named() -> None:
    cameras = make_rig(FEW)
    with pytest.raises(UserError, match="would if cameras 0 and 2 were exchanged"):
        check_agreement(exchange(cameras, "0", "2"), [record(cameras)])


def test_a_copy_of_another_cameras_video_is_named() -> None:
    cameras = make_rig(ARC)
    evidence = record(cameras)
    points = evidence.points.copy()
    points[:, 3] = points[:, 6]
    with pytest.raises(UserError, match="camera 3 shows fits the calibration of camera 6"):
        check_agreement(cameras, [replace(evidence, points=points)])


def test_a_turned_camera_is_outvoted() -> None:
    cameras = make_rig(ARC)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0.05, 0]).as_matrix()
    turned = cameras | {
        "4": replace(cameras["4"], world_to_camera=turn @ cameras["4"].world_to_camera)
    }
    assert check_agreement(turned, [record(cameras)]) == ["4"]


@pytest.mark.parametrize(
    ("scale", "cause"),
    [
        (98.0, "millimetres"), (10.3, "centimetres"), (3.9, "inches"), (0.95, "decimetres"),
        (0.33, "feet"), (0.18, "intrinsics of images of another size"), (0.003, "likely causes"),
    ],
)  # fmt: skip
def test_the_scale_of_no_head_names_the_likely_cause(scale: float, cause: str) -> None:
    with pytest.raises(UserError, match=rf"admits 0\.08 to 0\.12.*{cause}"):
        check_scale(scale, (0.08, 0.12))
    check_scale(scale, (scale / 2, scale * 2))  # a setting for what is no adult's head


def test_exchanged_cameras_are_named_before_their_detections_are_given_up(tmp_path: Path) -> None:
    """Afterwards no face would be left in them: other views do not confirm it."""
    cameras, size = make_rig(ARC), 256
    truth = record(cameras).points[0]  # (C, 17, 2)
    for camera, serial in enumerate(cameras):
        (tmp_path / serial).mkdir()
        image = np.full((size, size, 3), 30 * camera, np.uint8)  # its grey tells the camera
        cv2.imwrite(str(tmp_path / serial / "00000.jpg"), image)

    def boxes(images: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array([[60.0, 60, 200, 200]]) for _ in images]

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = [round(float(image.mean()) / 30) for image in images]
        return np.tile(truth[places], (1, 4, 1)), np.ones((len(images), 68))

    def frames(rig: dict[str, Camera]) -> Frames:
        projections = np.stack([c.intrinsics @ c.world_to_camera[:3] for c in rig.values()])
        sources = np.zeros((1, len(rig)), dtype=np.int64)
        return Frames(tmp_path, list(rig), sources, projections, size)

    network = FaceNetwork(boxes, landmarks)
    _, confidence = detect_in_views(network, frames(cameras), size, 4)
    assert (confidence > 0).all()
    with pytest.raises(UserError, match="cameras 1 and 6 are exchanged"):
        detect_in_views(network, frames(exchange(cameras, "1", "6")), size, 4)
