from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eavatar.data.frames import FrameSet
from eavatar.splat.visibility import in_sensors
from tests.scenes.head_pictures import write_pictures

SIZE = 100  # two cameras at 1 m with a focal length of 360 pixels


@pytest.fixture
def frames(tmp_path: Path) -> FrameSet:
    subject = write_pictures(tmp_path, SIZE, 2, 2)
    read = FrameSet.read(subject / "capture", subject / "face", "train", SIZE)
    read.visible[:, :, :20] = 0
    read.world_to_camera[1] = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    read.world_to_camera[1, 2, 3] = 1  # from behind
    return read


def at(column: float, row: float = 50) -> list[float]:
    """A point that the first camera has in a place of its image; the second has it mirrored."""
    return [(column - SIZE / 2) / 360, (row - SIZE / 2) / 360, 0]


def test_a_point_in_one_sensor_is_seen(frames: FrameSet) -> None:
    points = torch.tensor([at(50), at(10), at(90), at(50, 99), at(50, 101), at(50, 103)])
    # Column 10 is padding, but column 90 from behind. Two pixels beyond the sensor are seen, too.
    assert in_sensors(points, frames).tolist() == [True, True, True, True, True, False]


def test_a_point_in_the_padding_of_all_cameras_is_not_seen(frames: FrameSet) -> None:
    frames.visible[:, :, 80:] = 0
    points = torch.tensor([at(50), at(17), at(19), at(81), at(83), [0, 0, 2.0], [0, 0, -2.0]])
    seen = in_sensors(points, frames).tolist()
    assert seen == [True, False, True, True, False, True, True]  # the last two by one camera each
    behind = torch.tensor([[0.0, 0.0, -3.0]])
    frames.world_to_camera[1] = frames.world_to_camera[0]
    assert not in_sensors(behind, frames).any()
