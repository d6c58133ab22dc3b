from __future__ import annotations

import csv
import logging
import os
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eavatar.capture.backends.plate import matte_by_plate
from eavatar.capture.backgrounds import estimate_background
from eavatar.capture.ingest import Window, calibrate, ingest
from eavatar.capture.matting import (
    MaskRow,
    Shot,
    find_failed,
    matte,
    steady,
)
from eavatar.capture.plate import Plate, _find_outlines, mask_from_plate
from eavatar.capture.video import decode_video
from eavatar.data.images import read_colour, read_grey
from eavatar.errors import UserError
from eavatar.io import write_image
from eavatar.settings import read_config
from tests.scenes import CONFIG
from tests.scenes.small_capture import (
    HEIGHT,
    SERIALS,
    WIDTH,
    grey_frames,
    ingest_settings,
    matte_settings,
    write_capture,
    write_video,
)

SIZE = 128
ALL_VISIBLE = np.full((SIZE, SIZE), 255, np.uint8)


def soft_disc(x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    """(size, size) coverage of a disc, with an edge two pixels wide."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.clip((radius - np.hypot(columns - x, rows - y)) / 2 + 0.5, 0, 1)


def uneven_plate() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    return np.stack([180 - 20 * rows, 175 - 10 * columns, 165 + 10 * rows], axis=-1)


def head(plate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A skin-coloured face with dark hair and a shirt that leaves the image, and its alpha."""
    hair, face = soft_disc(64, 56, 34), soft_disc(64, 66, 26)
    shirt = soft_disc(64, 138, 52)
    image = plate
    for alpha, colour in ((shirt, (75, 60, 55)), (hair, (38, 34, 32)), (face, (130, 160, 205))):
        image = image + alpha[..., None] * (np.array(colour) - image)
    return image, 1 - (1 - hair) * (1 - face) * (1 - shirt)


def expose(image: np.ndarray, gain: float, noise: float) -> np.ndarray:
    noisy = gain * image + np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("gain, noise", [(1.0, 1.0), (0.8, 2.0), (1.15, 2.0), (1.0, 8.0)])
def test_plate_finds_the_subject(gain: float, noise: float) -> None:
    plate = uneven_plate()
    image, truth = head(plate)
    prepared = Plate.of(plate.round().astype(np.uint8), ALL_VISIBLE)
    alpha = mask_from_plate(expose(image, gain, noise), prepared) / 255
    assert intersection_over_union(alpha > 0.5, truth > 0.5) > 0.985
    edge = (truth > 0) & (truth < 1)
    # A hard mask of the same disc would be 0.25 off on the edge on average.
    assert np.abs(alpha - truth)[edge].mean() < 0.08


def test_plate_finds_the_subject_in_a_large_frame() -> None:
    plate = uneven_plate()
    image, truth = head(plate)
    large = 12 * SIZE, 12 * SIZE  # where local colours are not those of all pixels
    empty, image, truth = (cv2.resize(values, large) for values in (plate, image, truth))
    prepared = Plate.of(empty.round().astype(np.uint8), np.full(large, 255, np.uint8))
    alpha = mask_from_plate(expose(image, 0.8, 2.0), prepared) / 255
    edge = (truth > 0) & (truth < 1)
    assert np.abs(alpha - truth)[edge].mean() < 0.08  # as of small frames


def test_plate_forgives_a_soft_shadow() -> None:
    plate = uneven_plate()
    image, truth = head(plate)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    depth = 0.2 * np.exp(-((columns - 112) ** 2 + (rows - 60) ** 2) / 400)  # of linear light
    shadow = np.where(truth == 0, (1 - depth) ** (1 / 2.2), 1)[..., None]
    prepared = Plate.of(plate.round().astype(np.uint8), ALL_VISIBLE)
    alpha = mask_from_plate(expose(image * shadow, 1.0, 1.0), prepared)
    assert intersection_over_union(alpha > 127, truth > 0.5) > 0.985


def test_plate_fills_false_holes_and_keeps_true_ones() -> None:
    plate = uneven_plate()
    image, _ = head(plate)
    similar = soft_disc(56, 70, 5)[..., None]  # skin of nearly the plate's colour
    image = image + similar * (plate + np.array([3, 3, 6]) - image)
    seen_through = soft_disc(76, 70, 5)[..., None]
    image = image + seen_through * (plate - image)
    prepared = Plate.of(plate.round().astype(np.uint8), ALL_VISIBLE)
    alpha = mask_from_plate(expose(image, 1.0, 1.0), prepared)
    assert alpha[70, 56] == 255
    assert alpha[70, 76] == 0


def test_plate_keeps_a_shirt_that_is_apart_and_drops_specks() -> None:
    plate = uneven_plate()
    image, truth = head(plate)
    image[88:96], truth[88:96] = plate[88:96], 0
    image[30:36, 10:16] = 40
    prepared = Plate.of(plate.round().astype(np.uint8), ALL_VISIBLE)
    alpha = mask_from_plate(expose(image, 1.0, 1.0), prepared)
    assert intersection_over_union(alpha > 127, truth > 0.5) > 0.985


def test_parts_and_holes_that_touch_at_corners() -> None:
    """A part is apart if only a corner touches; a hole is open if a corner leads outside."""
    subject = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 1, 1, 1, 0],
            [0, 1, 0, 1, 0, 1, 0, 1, 0],
            [0, 1, 1, 1, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0, 0],
            [1, 0, 0, 0, 1, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    parts, holes = _find_outlines(subject)
    assert len(parts) == 3
    assert [cv2.boundingRect(hole)[:2] for hole in holes] == [(2, 2)]


def test_plate_of_an_empty_set_is_empty() -> None:
    plate = uneven_plate()
    prepared = Plate.of(plate.round().astype(np.uint8), ALL_VISIBLE)
    assert mask_from_plate(expose(plate, 1.0, 2.0), prepared).max() == 0


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_plate_masks_and_their_index(tmp_path: Path) -> None:
    plate = np.full((HEIGHT, WIDTH, 3), (165, 175, 180), np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    truth = ((columns - 110) / 60) ** 2 + ((rows - 170) / 80) ** 2 < 1
    image = np.where(truth[..., None], np.array([60, 40, 40], np.uint8), plate)
    raw = write_capture(tmp_path / "raw", [image] * 2, sequences=("FREE",), plate=plate)
    settings, frames = ingest_settings(image_size=128), tmp_path / "capture"
    calibrate(settings, raw, frames)
    ingest(settings, raw, "FREE", frames)
    stale = frames / "masks" / "FREE" / SERIALS[0] / "00009.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    matte(matte_settings("plate"), settings, frames, "FREE", None, frames / "masks")
    assert not stale.exists()
    mask = cv2.imread(str(stale.with_name("00001.png")), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8 and mask.shape == (128, 128)
    expected = Window.of(settings, WIDTH, HEIGHT).apply(truth.astype(np.uint8) * 255)
    assert intersection_over_union(mask > 127, expected > 127) > 0.98
    index = read_rows(frames / "masks" / "FREE.csv")
    box = ["left", "top", "right", "bottom"]
    assert list(index[0]) == ["timestep", "camera", "coverage", *box, "failed"]
    assert all(row["failed"] == "0" for row in index)
    assert len(index) == 2 * len(SERIALS)
    assert float(index[0]["coverage"]) == pytest.approx((expected / 255).mean(), abs=0.01)
    row = next(row for row in index if row["timestep"] == "1" and row["camera"] == SERIALS[0])
    inside = np.argwhere(mask > 0)
    corners = [*inside.min(axis=0)[::-1], *inside.max(axis=0)[::-1] + 1]
    assert [int(row[side]) for side in box] == corners


def test_the_set_is_estimated_where_the_person_was_and_near_its_edges() -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    behind = np.dstack([100 + columns / 2, 60 + rows / 2, 40 + (rows + columns) / 4])
    views = []
    for step in range(4):
        alpha = soft_disc(SIZE // 2 + 8 * step, SIZE // 2, SIZE // 4)[..., None]
        frame = (30 * alpha + (1 - alpha) * behind).round().astype(np.uint8)
        views.append((frame, (255 * alpha[..., 0]).round().astype(np.uint8)))
    error = abs(estimate_background(views, ALL_VISIBLE).astype(float) - behind).max(axis=2)
    hidden = np.min([cv2.dilate(mask, np.ones((3, 3))) for _, mask in views], axis=0) > 0
    assert error[~hidden].max() <= 1
    edge = hidden & (cv2.erode(hidden.astype(np.uint8), np.ones((7, 7))) == 0)
    assert error[edge].max() <= 4  # half a level a pixel, three pixels further


@pytest.mark.parametrize("choice", ["plate", "estimated", "none"])
def test_the_set_is_written_beside_the_masks(tmp_path: Path, choice: str) -> None:
    plate = np.full((HEIGHT, WIDTH, 3), (165, 175, 180), np.uint8)
    image = plate.copy()
    image[100:240, 60:160] = 40
    raw = write_capture(tmp_path / "raw", [image] * 2, sequences=("FREE",), plate=plate)
    settings, frames = ingest_settings(image_size=128), tmp_path / "capture"
    calibrate(settings, raw, frames)
    ingest(settings, raw, "FREE", frames)
    chosen = matte_settings("plate").model_copy(update={"foreground": choice})
    matte(chosen, settings, frames, "FREE", None, frames / "masks")
    path = frames / "masks" / "FREE" / SERIALS[0] / "background.jpg"
    assert path.exists() == (choice != "none")
    if choice != "none":
        visible = read_grey(frames / "visible" / f"{SERIALS[0]}.png") == 255
        ingested = read_colour(frames / "plates" / f"{SERIALS[0]}.png").astype(float)
        error = abs(read_colour(path) - ingested).max(axis=2)
        assert error[visible].max() <= 6  # frames and backgrounds are JPEGs


def test_a_camera_whose_masks_have_all_failed_has_no_set(frames: Path) -> None:
    """An estimate would be black, and part of the mean over the sequences."""
    write_mattes(frames / "mattes", 5)
    write_video(frames / "mattes" / "FREE" / f"cam_{SERIALS[0]}.mp4", grey_frames(1) * 5)  # no mask
    chosen = matte_settings("provided").model_copy(update={"foreground": "estimated"})
    chosen = chosen.model_copy(update={"max_coverage": 0.2})
    matte(chosen, ingest_settings(every=2), frames, "FREE", frames / "mattes", frames / "masks")
    failed = {
        row["camera"] for row in read_rows(frames / "masks" / "FREE.csv") if row["failed"] == "1"
    }
    assert failed == {SERIALS[0]}
    found = {path.parent.name for path in (frames / "masks" / "FREE").glob("*/background.jpg")}
    assert found == set(SERIALS[1:])


def test_an_empty_mask_has_an_empty_box() -> None:
    row = MaskRow.of(3, SERIALS[0], np.zeros((SIZE, SIZE), np.uint8))
    assert (row.left, row.top, row.right, row.bottom) == (0, 0, 0, 0)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    raw = write_capture(tmp_path / "raw", grey_frames(5), sequences=("FREE",))
    calibrate(ingest_settings(every=2), raw, tmp_path / "capture")
    ingest(ingest_settings(every=2), raw, "FREE", tmp_path / "capture")
    return tmp_path / "capture"


def test_plate_without_a_plate_names_it(frames: Path) -> None:
    with pytest.raises(UserError, match=f"plate of camera {min(SERIALS)}"):
        matte(matte_settings("plate"), ingest_settings(), frames, "FREE", None, frames / "masks")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "lists no frames"), ("timestep,camera\n0,1\n", "damaged"), ("camera\n1\n", "damaged")],
)
def test_a_damaged_index_of_frames_is_named(content: str, reason: str, frames: Path) -> None:
    (frames / "FREE.csv").write_text(content)
    with pytest.raises(UserError, match=rf"FREE\.csv .*{reason}.*ingest the sequence again"):
        matte(matte_settings("plate"), ingest_settings(), frames, "FREE", None, frames / "masks")


def write_mattes(folder: Path, count: int) -> None:
    """Alpha videos at twice the frames' size: a disc that moves 20 pixels per frame."""
    for serial in SERIALS:
        discs = [soft_disc(160 + 20 * index, 340, 60, size=2 * HEIGHT) for index in range(count)]
        images = [np.repeat(disc[:, : 2 * WIDTH, None], 3, axis=2) * 255 for disc in discs]
        write_video(
            folder / "FREE" / f"cam_{serial}.mp4", [image.astype(np.uint8) for image in images]
        )


def test_provided_mattes_are_cropped_like_the_frames(frames: Path, tmp_path: Path) -> None:
    write_mattes(tmp_path / "mattes", 5)
    settings = ingest_settings(every=2)
    arguments = (settings, frames, "FREE", tmp_path / "mattes", frames / "masks")
    matte(matte_settings("provided"), *arguments)
    disc = soft_disc(160 + 20 * 4, 340, 60, size=2 * HEIGHT)[:, : 2 * WIDTH]
    expected = Window.of(settings, 2 * WIDTH, 2 * HEIGHT).apply((disc * 255).astype(np.uint8))
    path = frames / "masks" / "FREE" / SERIALS[0] / "00002.png"  # every=2: video frame 4
    mask = read_grey(path)
    assert np.abs(mask.astype(float) - expected).mean() < 2


def test_provided_mattes_of_frames_between_the_timesteps_are_not_read(
    frames: Path, tmp_path: Path
) -> None:
    mask = soft_disc(160, 340, 60, size=2 * HEIGHT)[:, : 2 * WIDTH] * 255
    for serial, index in product(SERIALS, range(5)):
        write_image(tmp_path / "FREE" / f"cam_{serial}" / f"{index}.png", mask.astype(np.uint8))
        if index % 2:
            (tmp_path / "FREE" / f"cam_{serial}" / f"{index}.png").write_bytes(b"damaged")
    arguments = (ingest_settings(every=2), frames, "FREE", tmp_path, frames / "masks")
    matte(matte_settings("provided"), *arguments)
    assert len(list((frames / "masks" / "FREE" / SERIALS[0]).glob("*.png"))) == 3


def test_provided_mattes_that_are_missing_or_of_another_length_are_named(
    frames: Path, tmp_path: Path
) -> None:
    def run(mattes: Path | None) -> None:
        arguments = (ingest_settings(), frames, "FREE", mattes, frames / "masks")
        matte(matte_settings("provided"), *arguments)

    with pytest.raises(UserError, match="have no folder"):
        run(None)
    with pytest.raises(UserError, match="alpha video of camera"):
        run(tmp_path / "mattes")
    for count in (4, 6):
        write_mattes(tmp_path / "mattes", count)
        with pytest.raises(UserError, match=f"has {count} frames, but the colour video has 5;"):
            run(tmp_path / "mattes")


def test_masks_that_cover_nothing_fail(
    frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for serial in SERIALS:
        path = tmp_path / "mattes" / "FREE" / f"cam_{serial}.mp4"
        write_video(path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 5)
    with caplog.at_level(logging.WARNING):
        arguments = (ingest_settings(), frames, "FREE", tmp_path / "mattes", frames / "masks")
        matte(matte_settings("provided"), *arguments)
    assert f"camera {SERIALS[0]}: 3 of 3 masks failed" in caplog.text
    assert all(row["failed"] == "1" for row in read_rows(frames / "masks" / "FREE.csv"))


def test_a_mask_that_vanishes_for_a_frame_fails_alone(frames: Path, tmp_path: Path) -> None:
    disc = soft_disc(110, 160, 50, size=HEIGHT)[:, :WIDTH]
    images = [np.repeat(disc[..., None] * 255, 3, axis=2).astype(np.uint8)] * 5
    images[2] = images[2] // 2
    for serial in SERIALS:
        write_video(tmp_path / "mattes" / "FREE" / f"cam_{serial}.mp4", images)
    settings = ingest_settings(every=2)
    arguments = (settings, frames, "FREE", tmp_path / "mattes", frames / "masks")
    matte(matte_settings("provided"), *arguments)
    rows = read_rows(frames / "masks" / "FREE.csv")
    assert {row["timestep"] for row in rows if row["failed"] == "1"} == {"1"}  # video frame 2


def failed(coverage: list[float]) -> list[int]:
    return np.flatnonzero(find_failed(np.array(coverage), matte_settings("plate"))).tolist()


def test_coverage_may_drift_but_not_jump() -> None:
    assert failed([0.5 * 1.08**step for step in range(8)]) == []  # as fast as a head turns
    assert failed([0.4, 0.4, 0.4, 0.6, 0.6, 0.6]) == []  # leans forward
    assert failed([0.5, 0.51, 0.7, 0.5, 0.5, 0.49]) == [2]
    assert failed([0.8, 0.5, 0.5, 0.5, 0.5]) == [0]
    assert failed([0.5, 0.5, 0.5, 0.5, 0.3]) == [4]


def test_neighbours_of_failed_masks_stay() -> None:
    assert failed([0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 0.5]) == [1, 2, 3, 6]
    assert failed([0.5, 0.9]) == []  # which one?
    assert failed([0.0]) == [0]


@given(st.lists(st.floats(0, 1), max_size=30))
def test_only_plausible_masks_are_usable(coverage: list[float]) -> None:
    usable = np.delete(coverage, failed(coverage))
    assert all((usable >= 0.02) & (usable <= 0.95))


def test_alpha_is_steadied_only_where_the_frame_rests() -> None:
    random = np.random.default_rng(0)
    images = [np.full((SIZE, SIZE, 3), 100, np.uint8) for _ in range(9)]
    for index, image in enumerate(images):
        image[:, 64:] = 60 * (index % 4)  # the right half never rests
        image += random.integers(0, 4, image.shape, dtype=np.uint8)
    alphas = [random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8) for _ in images]
    result = list(steady(images, alphas))
    assert len(result) == 9
    assert np.array_equal(result[0], alphas[0]) and np.array_equal(result[8], alphas[8])
    for index in range(1, 8):
        middle = np.median(alphas[index - 1 : index + 2], axis=0)
        assert np.array_equal(result[index][:, :60], middle[:, :60])
        assert np.array_equal(result[index][:, 66:], alphas[index][:, 66:])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_frames_are_left_as_they_are(count: int) -> None:
    alphas = [np.full((4, 4), index, np.uint8) for index in range(count)]
    result = list(steady([np.zeros((4, 4, 3), np.uint8)] * count, alphas))
    assert [image[0, 0] for image in result] == list(range(count))


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
@pytest.mark.parametrize("serial", ["222200037", "222200044", "222200045"])
def test_subject_901_masks_match_the_truth(tmp_path: Path, serial: str) -> None:
    """Above what 2176 views at 640 pixels gave: IoU at least 0.991, mean error at most 0.006."""
    shared = Path(os.environ["EAVATAR_SHARED"])
    settings = ingest_settings(image_size=256, cameras=[serial], sequences=["FREE"])
    calibrate(settings, shared / "captures" / "901", tmp_path)
    ingest(settings, shared / "captures" / "901", "FREE", tmp_path)
    matte(matte_settings("plate"), settings, tmp_path, "FREE", None, tmp_path / "masks")
    visible = read_grey(tmp_path / "visible" / f"{serial}.png") > 0
    overlaps, errors = [], []
    for timestep, image in decode_video(shared / "truth/901/FREE_mask" / f"cam_{serial}.mp4"):
        truth = Window.of(settings, 550, 802).apply(image[..., 1].copy())
        path = tmp_path / "masks" / "FREE" / serial / f"{timestep:05d}.png"
        mask = read_grey(path)
        overlaps.append(intersection_over_union(mask > 127, truth > 127))
        errors.append(np.abs(mask.astype(float) - truth)[visible].mean() / 255)
    assert min(overlaps) > 0.99
    assert max(errors) < 0.008


def test_a_view_of_no_use_has_empty_masks(tmp_path):
    """Nothing of it is visible, so that there is nothing to compare; it is not even read."""
    config = CONFIG / "config.yaml"
    capture = read_config(config).capture
    nothing = np.zeros((32, 32), np.uint8)
    shot = Shot(capture.matte, capture.ingest, tmp_path, None, "FREE", "1", (0, 1), (0, 3), nothing)
    masks = list(matte_by_plate(shot))
    assert len(masks) == 2 and not any(mask.any() for mask in masks)
