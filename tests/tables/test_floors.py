"""Floors of the ball, and of frames that are made for the purpose."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eavatar.__main__ import main
from eavatar.data.frames import FrameSet
from eavatar.io import Sequences, write_sequences
from eavatar.settings import EvaluateSettings
from eavatar.tables.evaluate import _request
from eavatar.tables.floors import MeanImage, NearestFrame, floors
from tests.scenes.ball import SIZE, Subject

SETTINGS = EvaluateSettings(lpips_net="alex", lpips_required=False, pictures=2)


@pytest.fixture(autouse=True)
def no_lpips_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def read(subject: Subject, split: str) -> FrameSet:
    return FrameSet.read(subject.results / "capture", subject.results / "face", split, SIZE)


def test_both_floors_are_measured_on_the_images_of_the_avatar(subject, tmp_path):
    words = ["floors", "--settings", SETTINGS.model_dump_json(), "--image-size", str(SIZE)]
    words += [
        "--capture",
        str(subject.results / "capture"),
        "--face",
        str(subject.results / "face"),
    ]
    assert main([*words, "--output", str(tmp_path / "floors.csv")]) == 0
    found = pd.read_csv(tmp_path / "floors.csv")
    ours = pd.read_csv(subject.results / "tables" / "full" / "images.csv")
    assert list(found.columns) == list(ours.columns)
    assert found["protocol"].unique().tolist() == ["mean_image", "nearest_training_frame"]
    views = ["sequence", "timestep", "camera"]
    for _, rows in found.groupby("protocol"):
        wanted = ours[ours["protocol"] == "self_reenactment"][views]
        assert rows[views].to_numpy().tolist() == wanted.to_numpy().tolist()
    best = found["psnr_db"].max()
    assert best < ours[ours["protocol"] == "self_reenactment"]["psnr_db"].min()


def test_the_mean_is_that_of_a_cameras_usable_training_frames(subject):
    training = read(subject, "train")
    request = replace(_request(training, 0, list(range(len(training.serials))), 1.0), sequence="?")
    mean = MeanImage.of(training).render(request)
    camera = training.serials.index("222200032")  # its mask failed at timestep 1
    expected = training.views(0, [camera]).images[0].numpy()
    np.testing.assert_allclose(mean[camera], expected, atol=1e-6)  # float32
    camera = training.serials.index("222200030")
    both = [training.views(index, [camera]).images[0].numpy() for index in range(2)]
    np.testing.assert_allclose(mean[camera], np.mean(both, axis=0), atol=1e-6)


def test_the_mean_that_a_training_frame_is_compared_with_is_of_the_others(subject):
    training = read(subject, "train")
    mean, cameras = MeanImage.of(training), training.usable_cameras(1)
    for index in range(2):  # of two timesteps
        drawn = mean.render(_request(training, index, cameras, 1.0))
        expected = training.views(1 - index, cameras).images
        np.testing.assert_allclose(drawn, expected, atol=1e-6)  # float32


def test_the_mean_of_a_long_training_is_of_timesteps_spread_over_it(subject, monkeypatch):
    monkeypatch.setattr("eavatar.tables.floors.MAX_TIMESTEPS", 1)
    training = read(subject, "train")
    mean, cameras = MeanImage.of(training), training.usable_cameras(1)
    request = _request(training, 1, cameras, 1.0)
    expected = training.views(0, cameras).images  # the first of two
    np.testing.assert_allclose(mean.render(request), expected, atol=1e-6)  # float32


def test_the_nearest_frame_of_a_training_frame_is_another(subject):
    training = read(subject, "train")
    nearest = NearestFrame.of(training)
    cameras = training.usable_cameras(1)
    for index in range(2):  # of two timesteps
        drawn = nearest.render(_request(training, index, cameras, 1.0))
        assert torch.equal(drawn, training.views(1 - index, cameras).images)


def test_the_nearest_frame_of_what_another_sequence_repeats_is_that(subject):
    training = read(subject, "train")
    cameras = training.usable_cameras(1)
    for index in range(2):
        request = replace(_request(training, index, cameras, 1.0), sequence="FREE")
        drawn = NearestFrame.of(training).render(request)
        assert torch.equal(drawn, training.views(index, cameras).images)


def test_a_camera_without_another_frame_is_white(subject):
    training = read(subject, "train")
    camera = training.serials.index("222200032")  # its mask failed at timestep 1
    for floor in (MeanImage, NearestFrame):
        drawn = floor.of(training).render(_request(training, 0, [camera], 1.0))
        assert torch.equal(drawn, torch.ones_like(drawn))


def test_a_camera_whose_nearest_frame_failed_shows_its_next(subject):
    training = read(subject, "train")
    camera = training.serials.index("222200032")
    drawn = NearestFrame.of(training).render(_request(training, 1, [camera], 1.0))
    assert torch.equal(drawn, training.views(0, [camera]).images)


def test_timesteps_that_are_trained_on_are_not_compared_with_themselves(subject, tmp_path):
    """As where cameras are held out, and no sequence."""
    capture = tmp_path / "capture"
    shutil.copytree(subject.results / "capture", capture)
    write_sequences(capture / "sequences.json", Sequences(("EXP-1-head",), ("EXP-1-head",)))
    path = floors(SETTINGS, SIZE, capture, subject.results / "face", tmp_path / "floors.csv")
    found = pd.read_csv(path)
    assert set(found["protocol"]) == {"mean_image", "nearest_training_frame"}
    assert np.isfinite(found["psnr_db"]).all()
