"""What a generator is asked: the request, its images, and what keeps it from being asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from eavatar.errors import UserError
from eavatar.io import Tracking, read_arrays, write_arrays
from eavatar.prior.request import prepare_prior
from eavatar.settings import Config, GenerateSettings, merge, validate
from tests.scenes import CONFIG
from tests.scenes.ball import Subject, make_subject

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())


def generate_settings(**own: Any) -> GenerateSettings:
    changed = {"prior": {"generate": {"source": "trellis", "trellis": {"neck": 5.0, **own}}}}
    return validate(Config, merge(BASE, changed), "test").prior.generate


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("ball"))


def ask(settings: GenerateSettings, results: Path, output: Path) -> dict[str, Any]:
    path = prepare_prior(settings, results / "capture", results / "face", output)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_request_names_the_frame_and_the_frame_is_in_the_image(
    ball: Subject, tmp_path: Path
) -> None:
    asked = ask(generate_settings(seed=7), ball.results, tmp_path)
    assert asked["source"] == "trellis" and asked["settings"]["seed"] == 7
    assert Path(asked["weights"]).is_absolute()  # a generator's program runs elsewhere
    (view,) = asked["views"]
    tracking = read_arrays(Tracking, ball.results / "face/tracking/EXP-1-head.npz")
    calm = np.sqrt((tracking.expression**2).mean(axis=1))
    # of two timesteps, both of which a camera sees from the front, the calmer; none is held out
    assert (view["sequence"], view["timestep"]) == ("EXP-1-head", int(calm.argmin()))
    assert view["expression"] == pytest.approx(calm.min(), abs=1e-3)
    portrait = cv2.imread(str(tmp_path / view["image"]), cv2.IMREAD_UNCHANGED)
    assert portrait.shape == (view["size"], view["size"], 4)
    place = f"{view['sequence']}/{view['camera']}/{view['timestep']:05d}"
    frame = cv2.imread(str(ball.results / "capture" / f"{place}.jpg"))
    opaque = portrait[portrait[..., 3] == 255][:, :3]
    colours = set(map(tuple, frame.reshape(-1, 3).tolist()))
    assert len(opaque) > 0 and set(map(tuple, opaque.tolist())) <= colours


def test_side_views_are_added_where_they_are_asked_for(ball: Subject, tmp_path: Path) -> None:
    asked = ask(generate_settings(side_views="stochastic"), ball.results, tmp_path)
    cameras = [view["camera"] for view in asked["views"]]
    assert asked["views"][0]["name"] == "front"
    assert 1 < len(cameras) == len(set(cameras))
    assert all((tmp_path / view["image"]).is_file() for view in asked["views"])


def test_a_head_that_no_camera_sees_from_the_front_is_one_sentence(
    ball: Subject, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(ball.results, tmp_path / "results"))
    path = results / "face/tracking/EXP-1-head.npz"
    tracking = read_arrays(Tracking, path)
    turned = Rotation.from_rotvec(tracking.rotation) * Rotation.from_rotvec([0, np.pi, 0])
    write_arrays(path, replace(tracking, rotation=turned.as_rotvec()))
    with pytest.raises(UserError, match=r"no camera in .* set .*source to template"):
        ask(generate_settings(), results, tmp_path / "prior")


def test_a_source_without_a_generator_is_shown_nothing(ball: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'template', which is shown no images"):
        ask(GenerateSettings(source="template"), ball.results, tmp_path)


def test_a_failed_mask_names_its_file(ball: Subject, tmp_path: Path) -> None:
    results = Path(shutil.copytree(ball.results, tmp_path / "results"))
    for path in (results / "capture/masks").rglob("*.png"):
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), 0)))
    with pytest.raises(UserError, match=r"masks/EXP-1-head/\d+/\d+\.png: the mask has nothing"):
        ask(generate_settings(), results, tmp_path / "prior")
