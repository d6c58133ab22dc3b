"""Videos whose containers have players turn or mirror them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eavatar.capture.video import CameraFrames
from eavatar.errors import UserError
from tests.capture.test_own_video import RATE, encode, ingest, turn


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counter-clockwise"],
)
def test_a_video_that_players_turn_is_read_as_they_show_it(
    matrix: tuple[int, int, int, int], quarters: int, tmp_path: Path
) -> None:
    """So do other programs, by which cameras are calibrated."""
    path = encode(tmp_path / "cam_1.mp4", np.arange(3) / RATE)
    stored = [image for _, image in CameraFrames((path,)).decode()]
    frames = CameraFrames((turn(path, matrix),))
    upright = [np.rot90(image, quarters) for image in stored]
    header = frames.header()
    assert (header.height, header.width, header.frames) == (*upright[0].shape[:2], 3)
    part = (slice(10, 50), slice(3, 40))
    parts = [image for _, image in frames.decode(part=part)]
    for whole, cut, expected in zip(frames.decode(), parts, upright, strict=True):
        assert (whole[1] == expected).all() and (cut == expected[part]).all()


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)])
def test_a_video_that_some_players_mirror_is_refused(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    path = turn(encode(tmp_path / "cam_1.mp4", [0, 1 / RATE]), matrix)
    for read in (CameraFrames((path,)).header, lambda: ingest(path, tmp_path / "own")):
        with pytest.raises(UserError, match=r"cam_1\.mp4 is to be shown mirrored .*encode it as"):
            read()
