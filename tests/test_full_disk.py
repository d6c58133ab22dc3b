"""A training whose disk is full says so, and goes on exactly once there is space."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eavatar.errors import UserError
from eavatar.splat.train import train_splat
from tests.scenes.small_disk import PLENTY, leave_free, small_disk
from tests.scenes.splat_scene import write_subject
from tests.splat.test_splat_train import ALL_IN_BETWEEN, folders, small_settings


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        with small_disk(place):
            yield place
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error.stderr}")


def test_a_training_goes_on_where_its_disk_was_full(disk: Path, tmp_path: Path) -> None:
    subject = write_subject(tmp_path / "subject")
    settings = small_settings(**ALL_IN_BETWEEN, run={"checkpoint_every": 3})
    undisturbed = train_splat(settings, 0, *folders(subject), tmp_path / "undisturbed")

    output = disk / "splat"
    output.mkdir()
    leave_free(disk, 2**16)
    with pytest.raises(UserError, match=r"00000003\.pt cannot be written .*; free some space"):
        train_splat(settings, 0, *folders(subject), output)
    assert [path for path in output.rglob("*") if path.is_file()] == []

    leave_free(disk, PLENTY)
    train_splat(settings, 0, *folders(subject), output)
    assert (output / "model.safetensors").read_bytes() == undisturbed.read_bytes()
