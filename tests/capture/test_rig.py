"""Rigs that can have recorded a head pass; faulty calibrations of them name their cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.capture.rig import check_rig
from eavatar.errors import UserError

ADULT = (0.08, 0.12)
OPENGL = np.diag([1.0, -1, -1, 1])
Poses = np.ndarray


def look_at(centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 4) world-to-camera of an upright camera in a world with y up."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 1, 0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = right, np.cross(forward, right), forward
    pose[:3, 3] = -pose[:3, :3] @ centre
    return pose


def make_rig(
    angles: np.ndarray, distance: float, view: float, aim: float = 0.05
) -> dict[str, Camera]:
    """Cameras around a head, at angles in radians, in two rows.

    Args:
        angles: around the vertical axis.
        distance: metres, up to a tenth.
        view: metres that a frame shows at the head.
        aim: deviation of the point that a camera looks at, fraction of the frame.
    """
    random = np.random.default_rng(len(angles))
    focal = 1000 * distance / view
    intrinsics = np.array([[focal, 0, 500], [0, focal, 500], [0, 0, 1]])
    cameras = {}
    for index, angle in enumerate(angles):
        height = (0.14, -0.4)[index % 2]
        direction = [np.sin(angle) * np.cos(height), np.sin(height), np.cos(angle) * np.cos(height)]
        centre = distance * random.uniform(0.9, 1.1) * np.array(direction)
        pose = look_at(centre, random.normal(0, aim * view, 3))
        cameras[str(index)] = Camera(intrinsics, pose, 1000, 1000)
    return cameras


def change(cameras: dict[str, Camera], to: Callable[[Poses], Poses]) -> dict[str, Camera]:
    return {
        name: replace(camera, world_to_camera=to(camera.world_to_camera))
        for name, camera in cameras.items()
    }


def in_unit(per_metre: float) -> Callable[[Poses], Poses]:
    factors = np.ones((4, 4))
    factors[:3, 3] = per_metre
    return lambda pose: factors * pose


def centre_as_translation(pose: Poses) -> Poses:
    given = pose.copy()
    given[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return given


def elsewhere(pose: Poses) -> Poses:
    """In a world whose origin lies on the floor beside the head."""
    world = np.eye(4)
    world[:3, 3] = -0.3, 1.4, 0.5
    return pose @ world


ARC, RING, FEW = np.linspace(-0.8, 0.8, 16), np.arange(24) * np.pi / 12, np.linspace(-0.6, 0.6, 3)
RIGS = {
    "arc": make_rig(ARC, 1.0, 0.33),
    "wide lenses": make_rig(ARC, 0.5, 0.8),
    "from afar": make_rig(ARC, 5.0, 0.6),
    "all around": make_rig(RING, 2.0, 1.2, aim=0.12),
    "three": make_rig(FEW, 1.0, 0.5),
    "three close together": make_rig(FEW / 3, 1.0, 0.4),
}


@pytest.mark.parametrize("name", RIGS)
@pytest.mark.parametrize("world", [lambda pose: pose, elsewhere], ids=["head", "floor"])
def test_rigs_that_record_heads_pass(name: str, world: Callable[[Poses], Poses]) -> None:
    assert check_rig(change(RIGS[name], world), ADULT) == []


def test_a_wall_of_parallel_cameras_passes() -> None:
    intrinsics = np.array([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]])
    centres = [np.array([x, y, 1.0]) for x in (-0.2, 0, 0.2) for y in (-0.1, 0.1)]
    wall = {
        str(index): Camera(intrinsics, look_at(centre, centre - [0, 0, 1]), 1000, 1000)
        for index, centre in enumerate(centres)
    }
    assert check_rig(wall, ADULT) == []


FAULTS: dict[str, tuple[Callable[[Poses], Poses], str]] = {
    "millimetres": (in_unit(1000), "in millimetres"),
    "centimetres": (in_unit(100), "in centimetres"),
    "inches": (in_unit(39.37), "in (inches|centimetres)"),  # a rig 40 cm away is possible, too
    "camera to world": (np.linalg.inv, "camera-to-world matrices, in place"),
    "OpenGL": (lambda pose: OPENGL @ pose, "of OpenGL axes"),
    "OpenGL camera to world": (
        lambda pose: np.linalg.inv(pose) @ OPENGL,
        "camera-to-world matrices of OpenGL axes",
    ),
    "OpenGL camera to world in millimetres": (
        lambda pose: in_unit(1000)(np.linalg.inv(pose) @ OPENGL),
        "camera-to-world matrices of OpenGL axes.*in millimetres",
    ),
    "centres": (centre_as_translation, "rotations with the camera's position"),
}


@pytest.mark.parametrize("rig", ["arc", "from afar", "three"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_of_an_implausible_calibration_is_named(rig: str, fault: str) -> None:
    given, cause = FAULTS[fault]
    with pytest.raises(UserError, match=f"would be plausible if its matrices were {cause}"):
        check_rig(change(RIGS[rig], given), ADULT)


def test_what_no_reading_explains_is_told_without_a_cause() -> None:
    random = np.random.default_rng(0)
    turns = {name: np.linalg.qr(random.normal(size=(3, 3)))[0] for name in RIGS["arc"]}
    lost = {
        name: replace(camera, world_to_camera=np.block([
            [turns[name] * np.linalg.det(turns[name]), random.normal(size=(3, 1))],
            [np.zeros((1, 3)), np.ones((1, 1))],
        ]))
        for name, camera in RIGS["arc"].items()
    }  # fmt: skip
    with pytest.raises(UserError, match="must lead from the world to the camera"):
        check_rig(lost, ADULT)


def test_one_camera_is_too_few_and_two_are_doubtful() -> None:
    first, second, third = RIGS["three"].items()
    with pytest.raises(UserError, match=r"only camera 0 is used.*2 at least"):
        check_rig(dict([first]), ADULT)
    (doubt,) = check_rig(dict([first, third]), ADULT)
    assert "a third is needed" in doubt
    assert check_rig(dict([first, second, third]), ADULT) == []


def test_a_camera_that_looks_elsewhere_is_doubtful() -> None:
    turned = dict(RIGS["arc"])
    turned["3"] = replace(turned["3"], world_to_camera=OPENGL @ turned["3"].world_to_camera)
    (doubt,) = check_rig(turned, ADULT)
    assert doubt.startswith("camera 3 does not have in view")


def test_two_cameras_with_one_pose_are_refused() -> None:
    copied = {**RIGS["arc"], "4": RIGS["arc"]["5"]}
    with pytest.raises(UserError, match="cameras 4 and 5 at the same place"):
        check_rig(copied, ADULT)


def test_a_small_head_needs_the_setting() -> None:
    """A figurine of a tenth of the size, recorded from a tenth of the distance."""
    figurine = change(RIGS["arc"], in_unit(0.1))
    with pytest.raises(UserError, match=r"face\.fit\.head_scale"):
        check_rig(figurine, ADULT)
    assert check_rig(figurine, (0.008, 0.012)) == []
