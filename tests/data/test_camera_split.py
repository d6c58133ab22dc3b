"""Which cameras are trained on and which are measured."""

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.data.camera_split import order_by_azimuth, split_cameras
from eavatar.errors import UserError
from eavatar.settings import ALTERNATE

ANGLES = [-93, -70, -52, -36, -20, -5, 3, 17, 30, 44, 58, 71, 85, 99, 110, 125]
WORLD = np.eye(3)
TARGET = np.array([0.3, 1.2, -0.4])


def rig(angles: list[float], turn: np.ndarray = WORLD) -> dict[str, Camera]:
    """Cameras at some angles around a target, at several heights, in a world turned at will."""
    cameras = {}
    for number, angle in enumerate(np.radians(angles)):
        height = 0.25 * (number % 3 - 1)
        centre = TARGET + np.array([np.sin(angle), height, np.cos(angle)])
        forward = TARGET - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 1, 0])
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward]) @ turn.T
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = axes, -axes @ turn @ centre
        cameras[f"{number:02d}"] = Camera(np.eye(3), pose, 10, 10)
    return cameras


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cameras_are_in_order_around_the_head_whatever_the_world(axis):
    """The world's axes, the names' order and the heights play no part."""
    turn = np.roll(np.eye(3), axis, axis=0)
    shuffled = np.random.default_rng(0).permutation(ANGLES).tolist()
    order = [shuffled[int(name)] for name in order_by_azimuth(rig(shuffled, turn))]
    assert order in (sorted(ANGLES), sorted(ANGLES, reverse=True))


def test_alternate_cameras_lie_between_those_of_training():
    cameras = rig(ANGLES)
    training, measured = split_cameras(cameras, [ALTERNATE])
    assert len(training) == len(measured) == 8
    assert set(training) | set(measured) == set(cameras)
    order = order_by_azimuth(cameras)
    assert [name in training for name in order] == [True, False] * 8
    fewer = dict(list(cameras.items())[:5])
    training, measured = split_cameras(fewer, [ALTERNATE])
    order = order_by_azimuth(fewer)
    assert {order[0], order[-1]} < set(training) and len(measured) == 2


def test_cameras_are_held_out_by_name():
    cameras = rig(ANGLES)
    training, measured = split_cameras(cameras, ["03", "1*"])
    assert measured == ["03", "10", "11", "12", "13", "14", "15"]
    assert training == [name for name in cameras if name not in measured]
    assert split_cameras(cameras, []) == (list(cameras), list(cameras))


@pytest.mark.parametrize(
    ("held_out", "sentence"), [(["77"], "no camera matches"), (["*"], "0 cam")]
)
def test_a_wrong_choice_is_one_sentence(held_out, sentence):
    with pytest.raises(UserError, match=sentence):
        split_cameras(rig(ANGLES), held_out)
