"""The plain layout: sizes, crops and colours of its own, and what a faulty file is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.layouts import Layout, list_sequence_names, recognise
from eavatar.capture.plain import RigCamera, read_rig, write_crops, write_rig
from eavatar.capture.recording import check_videos
from eavatar.errors import UserError
from eavatar.io import read_cameras, write_json
from tests.scenes.small_capture import ingest_settings
from tests.scenes.small_rig import DOTS, WIDTH, make_rig, write_plain, write_recordings

SIZE = 256
SETTINGS = ingest_settings(image_size=SIZE, colour_correction=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rig = make_rig()
    write_recordings(tmp_path / "rig", rig, ("talk",))
    return write_plain(tmp_path / "rig", rig, "world_to_camera").parent


def test_cameras_of_several_sizes_are_cropped_each_in_its_own(tmp_path: Path) -> None:
    """One camera's image is a third as large again, another's stands upright."""
    rig, crops = make_rig(), {}
    camera = rig["right"].camera
    rig["right"] = RigCamera(camera.resize(512, 480))
    rig["centre"] = RigCamera(replace(rig["centre"].camera.crop(32, 0, 320, 384), height=384))
    write_recordings(tmp_path / "rig", rig, ("talk",))
    write_rig(tmp_path / "rig" / "cameras.json", rig)
    for name, one in rig.items():
        centre = one.camera.project(np.zeros(3))[0]
        side = round(0.4 * one.camera.intrinsics[0, 0])  # 0.4 m at 1 m
        left, top = np.round(centre - side / 2).astype(int).tolist()
        crops[name] = (left, top, side)
    write_crops(tmp_path / "rig" / "crops.json", crops)
    headers = check_videos(open_capture(tmp_path / "rig"), ["talk"])["talk"]
    assert (headers["right"].width, headers["centre"].height) == (512, 384)
    calibrate(SETTINGS, tmp_path / "rig", tmp_path / "capture")
    ingest(SETTINGS, tmp_path / "rig", "talk", tmp_path / "capture")
    for name, camera in read_cameras(tmp_path / "capture" / "cameras.json").items():
        assert (camera.width, camera.height) == (SIZE, SIZE)
        image = cv2.imread(str(tmp_path / "capture" / "talk" / name / "00000.jpg"))
        assert image.shape == (SIZE, SIZE, 3)
        for across, down in camera.project(DOTS)[0].astype(int):
            assert image[down, across].min() > 150, name  # a dot's middle; the ground is black


def test_without_crops_the_middle_square_is_taken(root: Path) -> None:
    assert set(open_capture(root).crops.values()) == {(32, 0, 320)}


def test_sequences_are_folders_and_plates_are_none(root: Path) -> None:
    assert recognise(root) is Layout.PLAIN
    (root / "sequences" / "BACKGROUND").mkdir()
    cv2.imwrite(str(root / "sequences" / "BACKGROUND" / "image_left.png"), np.zeros((320, 384)))
    assert list_sequence_names(root) == ["talk"]
    assert list(open_capture(root).plates) == ["left"]


def test_colour_matrices_act_on_columns_of_red_green_blue(root: Path, tmp_path: Path) -> None:
    """Red stays, green is mixed with it, blue is a constant."""
    rows = [[1, 0, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0, 0.5]]
    change(root, lambda content: [own.update(colour=rows) for own in content.values()])
    plate = root / "sequences" / "BACKGROUND" / "image_centre.png"
    plate.parent.mkdir()
    cv2.imwrite(str(plate), np.full((320, 384, 3), (50, 100, 200), np.uint8))  # blue, green, red
    settings = ingest_settings(image_size=SIZE, colour_correction=True)
    calibrate(settings, root, tmp_path / "capture")
    corrected = cv2.imread(str(tmp_path / "capture" / "plates" / "centre.png"))
    assert corrected[128, 128].tolist() == [128, 75, 200]


def change(root: Path, alter: Any) -> None:
    content = json.loads((root / "cameras.json").read_text())
    alter(content["cameras"])
    (root / "cameras.json").write_text(json.dumps(content))


def give_no_size(cameras: dict[str, Any]) -> None:
    del cameras["left"]["width"]


def give_two_directions(cameras: dict[str, Any]) -> None:
    cameras["left"]["camera_to_world"] = cameras["left"]["world_to_camera"]


def give_no_direction(cameras: dict[str, Any]) -> None:
    cameras["left"]["extrinsics"] = cameras["left"].pop("world_to_camera")


def give_half_the_intrinsics(cameras: dict[str, Any]) -> None:
    cameras["left"]["intrinsics"] = [[350, 0, 97], [0, 350, 80], [0, 0, 1]]


def give_a_path_as_name(cameras: dict[str, Any]) -> None:
    cameras["a/b"] = cameras.pop("left")


def give_one_colour(cameras: dict[str, Any]) -> None:
    cameras["left"]["colour"] = np.eye(3).tolist()


def give_an_inverse_of_nothing(cameras: dict[str, Any]) -> None:
    del cameras["left"]["world_to_camera"]
    cameras["left"]["camera_to_world"] = np.zeros((4, 4)).tolist()


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (give_no_size, "camera left needs 'width' and 'height'"),
        (give_two_directions, "it has world_to_camera and camera_to_world"),
        (give_no_direction, "holds 'extrinsics', which is not read"),
        (give_half_the_intrinsics, "as in intrinsics of an image of 192×160"),
        (give_a_path_as_name, "camera a/b: the name must do for a file"),
        (give_one_colour, "camera centre lacks 'colour'"),
        (give_an_inverse_of_nothing, "is no rotation and translation"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_a_faulty_calibration_is_one_sentence(root: Path, alter: Any, told: str) -> None:
    change(root, alter)
    with pytest.raises(UserError, match=told) as raised:
        open_capture(root)
    assert "\n" not in str(raised.value)


def test_faulty_crops_are_one_sentence(root: Path, tmp_path: Path) -> None:
    crops: dict[str, Any] = dict.fromkeys(make_rig(), (0, 0, 100))
    write_json(root / "crops.json", crops | {"left": (0, 0, 9.5)})
    with pytest.raises(UserError, match=r"camera left needs \[left, top, side\]"):
        open_capture(root)
    for side in (-9, 0, 1, 100_000):  # the last would take 30 GB of black
        write_crops(root / "crops.json", crops | {"left": (0, 0, side)})
        with pytest.raises(UserError, match=f"left's crop is {side} pixels; choose 32 to 1536 for"):
            open_capture(root)
    write_crops(root / "crops.json", crops | {"left": (WIDTH, 0, 100)})
    with pytest.raises(UserError, match="camera left lies outside its 384×320 image"):
        calibrate(SETTINGS, root, tmp_path / "capture")


def test_a_camera_may_not_be_called_as_the_number_of_the_format(root: Path) -> None:
    content = json.loads((root / "cameras.json").read_text())
    content["cameras"]["format"] = content["cameras"].pop("left")
    (root / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"camera cannot be called 'format'.*; rename it"):
        open_capture(root)


def test_a_capture_without_recordings_is_told(root: Path, tmp_path: Path) -> None:
    (root / "sequences").rename(tmp_path / "away")
    with pytest.raises(UserError, match="holds no recording"):
        open_capture(root)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rig = make_rig()
    rig["top"] = replace(rig["top"], colour=np.arange(12.0).reshape(3, 4))
    again = read_rig(write_rig(tmp_path / "cameras.json", rig))
    assert list(again) == list(rig)
    for name, one in rig.items():
        np.testing.assert_array_equal(
            again[name].camera.world_to_camera, one.camera.world_to_camera
        )
        assert (again[name].lens is None) == (one.lens is None)
    np.testing.assert_array_equal(again["top"].colour, rig["top"].colour)
