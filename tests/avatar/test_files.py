"""Model files outlive the version that wrote them.

``tests/stored/format_<n>`` is a small results folder as format n has it: a stage I model, an avatar
of 64 Gaussians, cameras, tracking, and the images that the version which wrote them drew. Every
later version reads all of them. Who raises `eavatar.avatar.files.FORMAT` runs ``python -m
tests.stored`` once and commits the new folder; older ones are never made anew. ``without_format``
holds the descriptions of the same two models in the layout before format 1, as the version before
it wrote them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from eavatar.avatar.files import FORMAT, read_avatar, read_stage_one, write_avatar, write_stage_one
from eavatar.avatar.model import Avatar
from eavatar.errors import UserError
from eavatar.io import Tracking, read_arrays, read_cameras
from eavatar.settings import Settings
from tests.stored import FOLDER

FORMATS = range(1, FORMAT + 1)
STORED = FOLDER / f"format_{FORMAT}"


def draw(avatar: Avatar, results: Path) -> np.ndarray:
    """All timesteps below one another, the cameras side by side, 0 to 255."""
    tracking = read_arrays(Tracking, results / "face" / "tracking" / "FREE.npz")
    images = 255 * avatar.render(tracking, read_cameras(results / "capture" / "cameras.json"))
    timesteps, cameras, height, width, _ = images.shape
    rows = images.permute(0, 2, 1, 3, 4).reshape(timesteps * height, cameras * width, 3)
    return rows.numpy()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the newest stored results to be changed."""
    return Path(shutil.copytree(STORED, tmp_path / "results"))


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_avatar_draws_the_images_of_its_time(number: int) -> None:
    folder = FOLDER / f"format_{number}"
    expected = cv2.imread(str(folder / "images.png"))[..., ::-1]
    drawn = draw(read_avatar(folder / "splat" / "full"), folder)
    # Half a level of 255 is the rounding of the stored image; 0.05 is for sums in another order.
    assert np.abs(drawn - expected).max() < 0.55


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_stage_one_model_is_what_the_stored_avatar_began_with(number: int) -> None:
    folder = FOLDER / f"format_{number}"
    stage, avatar = read_stage_one(folder / "sdf" / "full"), read_avatar(folder / "splat" / "full")
    assert stage.head == avatar.settings.head
    assert stage.features.shape == (len(stage.vertices), stage.head.feature_size) == (64, 8)
    for name, value in stage.drivers.state_dict().items():
        assert torch.equal(value, avatar.generator.drivers.state_dict()[name]), name


def test_descriptions_from_before_the_formats_are_read(copied: Path) -> None:
    for stage in ("sdf", "splat"):
        place = Path(stage, "full", "model.yaml")
        shutil.copyfile(FOLDER / "without_format" / place, copied / place)
    older, now = (read_avatar(root / "splat" / "full") for root in (copied, STORED))
    assert older.settings == now.settings
    assert np.array_equal(draw(older, STORED), draw(now, STORED))
    heads = [read_stage_one(root / "sdf" / "full").head for root in (copied, STORED)]
    assert heads[0] == heads[1]


def test_the_record_of_the_training_is_not_looked_at(copied: Path) -> None:
    for folder, read in (("sdf", read_stage_one), ("splat", read_avatar)):
        path = copied / folder / "full" / "model.yaml"
        content = yaml.safe_load(path.read_text())
        content["training"] = {"a setting of the future": [1, "two"]}
        path.write_text(yaml.safe_dump(content))
        read(path.parent)
        del content["training"]
        path.write_text(yaml.safe_dump(content))
        read(path.parent)


def test_writing_and_reading_changes_nothing(tmp_path: Path) -> None:
    avatar = read_avatar(STORED / "splat" / "full")
    write_avatar(tmp_path / "splat", avatar, Settings())
    again = read_avatar(tmp_path / "splat")
    assert again.settings == avatar.settings
    assert np.array_equal(draw(again, STORED), draw(avatar, STORED))
    stage = read_stage_one(STORED / "sdf" / "full")
    write_stage_one(tmp_path / "sdf", stage, Settings(), cameras=())
    again = read_stage_one(tmp_path / "sdf")
    assert again.head == stage.head and torch.equal(again.vertices, stage.vertices)
    assert torch.equal(again.torso.step, stage.torso.step)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("format: 1", "format: 2", r"model\.yaml has format 2, but this version .* reads format 1"),
        ("format: 1", "format: new", "has format new"),
        ("avatar:", "head:", r"describes no avatar \(splat/<variant>\)"),
        ("  scale:", "  unit:", "unknown setting 'unit'|'scale' is missing"),
        ("    near: 0.1", "    near: often", "setting 'head.near'"),
        ("  upsampler: subpixel", "  upsampler: pixels", "setting 'upsampler'"),
        ("    feature_size: 8", "    feature_size: 9", r"does not fit its model\.yaml"),
        ("format: 1", "[format", "not valid YAML"),
        ("avatar:", "avatar: 3\nother:", "'avatar' is no mapping"),
        ("  control:", "  control: []\n  other:", "'other'|'control'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    copied: Path, before: str, after: str, message: str
) -> None:
    path = copied / "splat" / "full" / "model.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError, match=message) as told:
        read_avatar(path.parent)
    assert str(path.parent) in str(told.value) and "\n" not in str(told.value)


def test_a_damaged_description_from_before_the_formats_is_one_sentence(copied: Path) -> None:
    folder = copied / "splat" / "full"
    (folder / "model.yaml").write_text("sizes: [1]\nsettings: 3\n")
    with pytest.raises(UserError, match="describes no avatar"):
        read_avatar(folder)


def test_a_model_of_the_other_stage_is_told_apart() -> None:
    with pytest.raises(UserError, match=r"sdf/full/model\.yaml describes no avatar"):
        read_avatar(STORED / "sdf" / "full")
    with pytest.raises(UserError, match=r"splat/full/model\.yaml describes no stage I model"):
        read_stage_one(STORED / "splat" / "full")


def test_a_missing_or_damaged_file_is_named(copied: Path) -> None:
    model = copied / "splat" / "full" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors does not fit"):
        read_avatar(model.parent)
    model.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        read_avatar(model.parent)
    with pytest.raises(UserError, match=r"model\.yaml does not exist"):
        read_stage_one(copied)
