"""From a video's file to a driver that moves an avatar."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from eavatar.__main__ import main
from eavatar.backends import LANDMARKS, LandmarkBackend
from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.face.landmarks import FaceNetwork, detect_in_views
from eavatar.io import read_tracking
from eavatar.settings import read_config
from eavatar.view.expressions import Face
from eavatar.view.player import RATE
from eavatar.view.track_video import track_video
from tests.scenes import CONFIG
from tests.scenes.moving_face import EXPRESSION, detections, random_motion, rig, write_model
from tests.view.test_reenact import write_person

COUNT, SIZE = 12, 256


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of nothing, and beside it a model and the detections of a face in it."""
    model = write_model(tmp_path / "model.h5")
    camera = rig(np.eye(3))["222200003"]
    motion = random_motion(model, np.eye(3), 5, COUNT)
    _, found = detections(model, motion, model.mean[:68], {"video": camera})
    points, confidence = found.points, found.confidence
    write_provided(tmp_path, points, confidence)
    frames = [np.full((SIZE, SIZE, 3), 10 * t, np.uint8) for t in range(COUNT)]
    write_video(tmp_path / "clip.mp4", iter(frames), RATE, "yuv420p", "10")
    return tmp_path / "clip.mp4"


def write_provided(folder: Path, points: np.ndarray, confidence: np.ndarray) -> None:
    arrays = {"cameras": np.array(["video"]), "points": points, "confidence": confidence}
    np.savez(folder / "clip.npz", **arrays)


def track(video: Path, *more: object) -> int:
    words = ["track-video", video, "--morphable-model", video.parent / "model.h5"]
    words += ["--config", CONFIG / "config.yaml", CONFIG / "demo.yaml"]
    words += ["--landmarks", video.parent, "--output", video.parent / "driver", *more]
    return main([str(word) for word in words])


def test_a_tracked_video_moves_an_avatar_of_another_model(clip: Path, tmp_path: Path) -> None:
    assert track(clip) == 0
    driver = tmp_path / "driver"
    tracking = read_tracking(driver / "face/tracking/clip.npz")
    assert tracking.expression.shape == (COUNT, EXPRESSION)
    assert Face.read(driver / "face").basis.shape[2] == EXPRESSION
    assert len(pd.read_csv(driver / "face/quality.csv")) == COUNT
    avatar = write_person(tmp_path / "avatar")
    output = tmp_path / "driven.mp4"
    words = ["reenact", "--results", avatar, "--avatars", avatar / "splat/full"]
    words += ["--driver", driver, "--sequence", "clip", "--smoothing", 0, "--output", output]
    assert main([str(word) for word in words]) == 0
    with av.open(str(output)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == COUNT
    assert abs(int(frames[5][30, 30, 0]) - 50) < 8  # the driver's frame beside it


def test_a_network_finds_the_face_in_a_video(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows the frames by their grey, and where the face is in each."""
    with np.load(tmp_path / "clip.npz") as archive:
        points, confidence = archive["points"][:, 0], archive["confidence"][:, 0]

    def boxes(images: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array([[40.0, 40, 220, 220]]) for _ in images]

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        timesteps = [round(float(image.mean()) / 10) for image in images]
        return points[timesteps], confidence[timesteps]

    backend = LandmarkBackend(
        name="known",
        run=lambda job: detect_in_views(FaceNetwork(boxes, landmarks), job.frames, SIZE, 4),
        instead="set face.landmarks.backend to provided",
    )
    monkeypatch.setitem(LANDMARKS.added, "known", backend)
    (tmp_path / "known.yaml").write_text("face: {landmarks: {backend: known}}")
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml", tmp_path / "known.yaml")
    model = tmp_path / "model.h5"
    provided, found = tmp_path / "provided", tmp_path / "found"
    track_video(config, clip, model, tmp_path, None, provided)
    track_video(config, clip, model, None, None, found)
    trackings = [read_tracking(folder / "face/tracking/clip.npz") for folder in (provided, found)]
    seen = confidence.any(axis=1)
    assert np.allclose(trackings[0].rotation[seen], trackings[1].rotation[seen], atol=1e-3)


def test_bad_input_is_told_in_one_sentence(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(match: str, video: Path, *more: object) -> None:
        assert track(video, *more) == 2
        (sentence,) = (
            line for line in capsys.readouterr().err.split("\n") if "eavatar track" in line
        )
        assert match in sentence

    refused("does not exist", tmp_path / "nowhere.mp4")
    for focal in (-1, "nan", "inf"):
        refused("no focal length", clip, "--focal", focal)
    for focal in (5, 1e7):
        refused("cannot be that of", clip, "--focal", focal)
    tiny = [np.zeros((24, 30, 3), np.uint8)] * 2
    write_video(tmp_path / "tiny.mp4", tiny, RATE, "yuv420p", "10")
    refused("tiny.mp4 is 30×24 pixels", tmp_path / "tiny.mp4")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:900])
    refused("not a readable video", tmp_path / "broken.mp4")
    write_provided(tmp_path, np.zeros((COUNT, 1, 68, 2)), np.zeros((COUNT, 1, 68)))
    refused("clip shows a face in none of its timesteps", clip)
    assert not (tmp_path / "driver").exists()  # nothing half-written


def test_a_fault_of_the_model_is_told_before_the_video_is_read(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.h5").unlink()
    assert track(clip) == 2
    assert "model.h5 does not exist" in capsys.readouterr().err
    assert not (tmp_path / "driver").exists()


def test_missing_weights_are_told_before_the_video_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    write_model(tmp_path / "model.h5")
    video = tmp_path / "broken.mp4"
    video.write_bytes(b"no video")
    config = read_config(CONFIG / "config.yaml")
    with pytest.raises(UserError, match="face-alignment's weights are missing"):
        track_video(config, video, tmp_path / "model.h5", None, None, tmp_path / "driver")


def test_another_video_replaces_the_driver_and_nothing_else(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cameras and identity are of one video: those of the second do not fit the first."""
    driver = tmp_path / "driver"
    assert track(clip) == 0
    (driver / "driven.mp4").touch()
    for path in (clip, tmp_path / "clip.npz"):
        path.rename(path.with_stem("my other"))
    with caplog.at_level(logging.INFO):
        assert track(tmp_path / "my other.mp4") == 0
    assert f"--driver {driver} --sequence 'my other'" in caplog.text
    assert [path.stem for path in (driver / "face/tracking").iterdir()] == ["my other"]
    assert {path.name for path in driver.iterdir()} == {"capture", "face", "driven.mp4"}


def test_the_results_of_a_subject_are_not_replaced(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = write_person(tmp_path / "driver")
    before = {path: path.read_bytes() for path in person.rglob("*") if path.is_file()}
    assert track(clip) == 2
    assert "holds other results than those of a video" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in person.rglob("*") if path.is_file()} == before
