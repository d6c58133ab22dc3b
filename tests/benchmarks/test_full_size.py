"""The capture that full-size measurements are made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.full_size import enlarge_capture, play_to_and_fro
from benchmarks.ingest import SEQUENCE, write_capture
from eavatar.capture.captures import open_capture
from eavatar.face.backends.provided import read_provided

SIZE = 440, 640


def test_frames_are_played_to_and_fro_without_a_pause() -> None:
    assert play_to_and_fro(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert play_to_and_fro(1, 3).tolist() == [0, 0, 0]


def test_an_enlarged_capture_opens_with_the_frames_and_landmarks_that_were_asked_for(
    tmp_path: Path,
) -> None:
    source = write_capture(tmp_path / "source", frames=4, cameras=2)
    found = np.arange(4, dtype=np.float32)
    (source / "landmarks").mkdir()
    np.savez(
        source / "landmarks" / f"{SEQUENCE}.npz",
        cameras=np.array(["222200036"]),
        points=np.broadcast_to(found[:, None, None, None], (4, 1, 68, 2)),
        confidence=np.ones((4, 1, 68)),
    )
    enlarge_capture(source, tmp_path / "large", frames=9, size=SIZE)

    capture = open_capture(tmp_path / "large")
    assert set(capture.frames[SEQUENCE]) == {"222200036", "222200037"}
    video = capture.frames[SEQUENCE]["222200036"]
    header = video.header()
    assert (header.width, header.height, header.frames, header.gaps) == (*SIZE, 9, ())
    images = np.stack([image for _, image in video.decode()]).astype(np.float32)
    # Every frame is decoded as the one six before it, a turn ago; others have moved by pixels.
    again, moved = images[6] - images[0], images[3] - images[0]
    assert np.abs(again).mean() < np.abs(moved).mean() / 2
    _, points, _ = read_provided(tmp_path / "large" / "landmarks" / f"{SEQUENCE}.npz")
    assert points[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
