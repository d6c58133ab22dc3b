"""A folder in Gaussian Head Avatar's layout: sequences, cameras, and what is wrong with them.

That such a folder gives the same contract as other layouts is in test_layouts.py.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.capture.gha import read_gha
from eavatar.capture.recording import check_videos
from eavatar.errors import UserError

SERIALS = ("222200036", "222200037")
INTRINSICS = np.array([[70.0, 0, 16], [0, 70, 16], [0, 0, 1]])
EXTRINSIC = np.array([[1.0, 0, 0, 0.1], [0, 1, 0, -0.2], [0, 0, 1, 1.5]])


def write_timestep(part: Path, name: str, shift: float = 0.0) -> None:
    for folder in ("images", "cameras"):
        (part / folder / name).mkdir(parents=True)
    for serial in SERIALS:
        image = np.full((32, 32, 3), 90, np.uint8)
        cv2.imwrite(str(part / "images" / name / f"image_{serial}.jpg"), image)
        moved = EXTRINSIC + np.array([0, 0, 0, shift])
        path = part / "cameras" / name / f"camera_{serial}.npz"
        np.savez(path, extrinsic=moved, intrinsic=INTRINSICS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("0002", "0010", "0000"):
        write_timestep(tmp_path, name)
    (tmp_path / "sequences").mkdir()
    marked = "\ufeff0010\r\n0002\r\n"  # as editors on Windows write it
    (tmp_path / "sequences/EXP.txt").write_text(marked, encoding="utf-8", newline="")
    (tmp_path / "sequences/FREE.txt").write_text("0000\n")
    return tmp_path


def test_sequences_are_the_lists_in_numeric_order(root: Path) -> None:
    capture = read_gha(root)
    assert capture.prepared
    assert tuple(capture.cameras) == SERIALS
    np.testing.assert_array_equal(capture.cameras[SERIALS[0]].intrinsics, INTRINSICS)
    np.testing.assert_array_equal(capture.cameras[SERIALS[1]].world_to_camera[:3], EXTRINSIC)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("FREE.txt", "0002", "both list 2; remove one"),
        ("FREE.txt", "7", "lists 7, which is no folder"),
        ("FREE.txt", "", "is empty"),
        ("FREE.txt", "first", "must list folder names"),
    ],
)
def test_a_wrong_list_is_named(root: Path, name: str, text: str, told: str) -> None:
    (root / "sequences" / name).write_text(text)
    with pytest.raises(UserError, match=told):
        read_gha(root)


def test_a_folder_name_in_two_spellings_is_named(root: Path) -> None:
    write_timestep(root, "02")
    with pytest.raises(UserError, match="two folders of one number"):
        read_gha(root)


def calibrate_with(root: Path, **more: object) -> None:
    for path in root.glob("cameras/*/*.npz"):
        with np.load(path) as content:
            np.savez(path, **dict(content), **more)


def test_lenses_are_read_and_must_not_change(root: Path) -> None:
    assert read_gha(root).lenses == {}
    calibrate_with(root, distortion=np.array([[-0.1, 0.02, 0, 0]]))
    lenses = read_gha(root).lenses
    assert {serial: lens.coefficients for serial, lens in lenses.items()} == dict.fromkeys(
        SERIALS, (-0.1, 0.02, 0, 0)
    )
    path = root / "cameras" / "0010" / f"camera_{SERIALS[0]}.npz"
    np.savez(path, extrinsic=EXTRINSIC, intrinsic=INTRINSICS)
    with pytest.raises(UserError, match=r"0010.*differs from .*0002"):
        read_gha(root)


def test_what_is_not_read_of_a_calibration_is_told(root: Path) -> None:
    calibrate_with(root, k1=0.1)
    with pytest.raises(UserError, match="holds 'k1', which is not read"):
        read_gha(root)


def test_a_camera_that_moves_by_a_millimetre_is_named(root: Path) -> None:
    write_timestep(root, "0011", shift=1e-3)
    (root / "sequences/LAST.txt").write_text("0011\n")
    with pytest.raises(UserError, match=r"0011.*cameras must stand still"):
        read_gha(root)


@pytest.mark.parametrize("missing", SERIALS)
def test_a_camera_without_its_first_image_is_not_left_out(root: Path, missing: str) -> None:
    path = root / "images/0002" / f"image_{missing}.jpg"  # of the first sequence's first timestep
    cv2.imwrite(str(path.with_name(f"image_lowres_{missing}.jpg")), np.zeros((8, 8, 3), np.uint8))
    path.unlink()
    capture = read_gha(root)
    assert tuple(capture.cameras) == SERIALS
    assert capture.full_size(missing) == (32, 32)
    with pytest.raises(UserError, match=f"{path} does not exist"):
        check_videos(capture, ["EXP"])


@pytest.mark.parametrize("content", [None, b"", b"PK not an archive"])
def test_a_missing_or_damaged_camera_file_is_named(root: Path, content: bytes | None) -> None:
    path = root / "cameras/0000" / f"camera_{SERIALS[1]}.npz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        read_gha(root)
