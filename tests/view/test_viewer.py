from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.avatar.files import read_avatar
from eavatar.errors import UserError
from eavatar.io import read_cameras, read_tracking
from eavatar.landmark_indices import BROWS, CHIN
from eavatar.view.modes import HEAT, Mode
from eavatar.view.viewer import (
    FAST,
    MIN_SIDE,
    NARROW,
    SLOW,
    WIDE,
    Pace,
    Viewer,
    pad_to_aspect,
    place_camera,
    size_to_draw,
)
from tests.scenes.small_results import write_results
from tests.scenes.talking_head import SIZE, write_talking_head

ROUNDING = 0.501  # half a level of 8 bits
EDGE = 4  # pixels near the end of an image that the upsampler's convolutions see it from


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_head(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def viewer(results: Path) -> Viewer:
    return Viewer.open(results)


def test_it_starts_at_rest_seen_from_the_front(viewer: Viewer) -> None:
    start = viewer.start
    assert (start.sequence, start.serial, start.variants) == ("EXP-1-head", "222200037", ("full",))
    assert viewer.tracks[start.sequence][start.timestep].expression.tolist() == [0, 0]
    assert [telling.name for telling in viewer.telling] == ["At rest", "Jaw open", "Brows up"]
    assert [component.index for component in viewer.components] == [0, 1]


def test_a_state_looks_as_the_avatar_is_rendered(results: Path, viewer: Viewer) -> None:
    avatar = read_avatar(results / "splat" / "full")
    tracking = read_tracking(results / "face" / "tracking" / "FREE.npz")
    camera = read_cameras(results / "capture" / "cameras.json")["222200036"]
    state = replace(viewer.start, sequence="FREE", timestep=1, camera=camera, serial="222200036")
    expected = 255 * avatar.render(tracking[1], camera.resize(SIZE, SIZE)).numpy()
    assert np.abs(viewer.draw(state) - expected).max() < ROUNDING


def test_a_slider_adds_to_what_was_tracked(viewer: Viewer) -> None:
    rest = viewer.tracks["EXP-1-head"][viewer.start.timestep]
    moved = replace(viewer.start, expression=(2.0, 0.5)).move(rest)
    assert moved.expression.tolist() == [2, 0.5]
    assert np.array_equal(moved.rotation, rest.rotation)
    acted = viewer.tracks["EXP-1-head"][2]
    assert replace(viewer.start, expression=(-1.0, 0)).move(acted).expression.tolist() == [1, 0]
    image = viewer.draw(replace(viewer.start, expression=(2.0, 0.0))).astype(int)
    changed = np.abs(image - viewer.draw(viewer.start)).max(axis=(1, 2)) > 10
    assert changed.any()
    assert not changed[: SIZE // 2].any()  # the jaw is in the lower half


def test_displacement_is_red_where_the_expression_moves_the_face(viewer: Viewer) -> None:
    state = replace(viewer.start, mode=Mode.DISPLACEMENT)
    assert np.ptp(viewer.draw(state), axis=2).max() == 0  # at rest all is grey
    image = viewer.draw(replace(state, timestep=2)) / 255  # with the jaw open
    landmarks = viewer.tracks[state.sequence].landmarks[2, [CHIN, *range(68)[BROWS]]]
    pixels, _ = state.camera.resize(SIZE, SIZE).project(landmarks.astype(np.float64))
    chin, *brows = (image[y, x] for x, y in pixels.astype(int))
    assert np.abs(chin - HEAT).max() < 0.1  # the chin moves by 13 mm, its edge is soft
    assert all(np.ptp(brow) < 0.02 for brow in brows)


def test_the_head_turns_in_its_own_axes(viewer: Viewer) -> None:
    tracked = viewer.tracks["EXP-1-head"][0]
    upright = replace(tracked, rotation=np.zeros(3, np.float32))
    nod = replace(viewer.start, turn=(30.0, 0.0, 0.0)).move(upright)
    assert np.allclose(nod.rotation, [np.radians(30), 0, 0], atol=1e-6)  # looks down: about x
    lying = replace(tracked, rotation=np.array([0, 0, np.pi / 2], np.float32))
    turned = replace(viewer.start, turn=(0.0, 20.0, 0.0)).move(lying)
    # About its own up, which points along -x when it lies on its left.
    expected = (
        cv2.Rodrigues(np.array([-np.radians(20), 0, 0]))[0] @ cv2.Rodrigues(lying.rotation)[0]
    )
    assert np.allclose(cv2.Rodrigues(turned.rotation)[0], expected, atol=1e-6)


def test_the_frame_stands_beside_the_render_and_its_error(results: Path, viewer: Viewer) -> None:
    tiles = np.split(viewer.draw(replace(viewer.start, compare=True)), 3, axis=1)
    path = results / "capture" / "EXP-1-head" / "222200037" / f"{viewer.start.timestep:05d}.jpg"
    frame = cv2.resize(cv2.imread(str(path))[..., ::-1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    below = slice(SIZE // 4, None)  # the tiles' names
    assert np.abs(tiles[0][below].astype(int) - frame[below]).max() <= 1
    assert np.array_equal(tiles[1][below], viewer.draw(viewer.start)[below])
    # The frame is the render but for its JPEG, and where the sensor ends.
    assert tiles[2][below].mean() > 245
    assert tiles[2][below, -4:].min() == 255
    wrong = replace(viewer.start, compare=True, expression=(2.0, 0.0))
    assert np.split(viewer.draw(wrong), 3, axis=1)[2][below].min() < 100


def test_nothing_is_compared_away_from_the_capture_or_with_a_heat_map(viewer: Viewer) -> None:
    away = replace(viewer.start, compare=True, serial=None)
    assert np.array_equal(viewer.draw(away), viewer.draw(viewer.start))
    heat = replace(viewer.start, compare=True, mode=Mode.DISPLACEMENT)
    assert viewer.draw(heat).shape == (SIZE, 2 * SIZE, 3)


def test_a_camera_moved_around_the_head_sees_what_the_capture_camera_there_does(
    viewer: Viewer,
) -> None:
    other = viewer.cameras["222200036"]
    moved = place_camera(viewer.start.camera, other.world_to_camera[:3, :3].T, other.centre)
    assert np.allclose(moved.world_to_camera, other.world_to_camera)
    states = (replace(viewer.start, camera=camera) for camera in (moved, other))
    assert np.array_equal(*map(viewer.draw, states))


@pytest.mark.parametrize(("x", "y", "aspect"), [(0.5, 0, 2.0), (0, 0.5, 0.5)])
def test_what_is_beyond_the_square_is_drawn_at_the_same_scale(
    viewer: Viewer, x: float, y: float, aspect: float
) -> None:
    camera = viewer.start.camera
    side = camera.width
    cut = camera.crop(x * side, y * side, side, side)  # ends in the middle of the face
    larger = viewer.draw(replace(viewer.start, camera=cut), aspect=aspect)
    assert larger.shape == (SIZE + 2 * int(y * SIZE), SIZE + 2 * int(x * SIZE), 3)
    inner = slice(EDGE, SIZE - EDGE)
    difference = larger[inner, inner].astype(int) - viewer.draw(viewer.start)[inner, inner]
    assert np.abs(difference).max() <= 1  # another order of sums


def test_an_image_fills_its_aspect_up_to_limits(viewer: Viewer) -> None:
    assert viewer.draw(viewer.start, aspect=1.37).shape == (SIZE, round(1.37 * SIZE), 3)
    assert viewer.draw(viewer.start, aspect=0.73).shape == (round(SIZE / 0.73), SIZE, 3)
    assert viewer.draw(viewer.start, aspect=9.0).shape == (SIZE, round(WIDE * SIZE), 3)
    assert viewer.draw(viewer.start, aspect=0.1).shape == (round(SIZE / NARROW), SIZE, 3)
    compare = replace(viewer.start, compare=True)
    assert np.array_equal(viewer.draw(compare, aspect=9.0), viewer.draw(compare))


@pytest.mark.parametrize("side", [64, 256, 550, 1024, 1100, 2048])
def test_windows_of_all_shapes_need_few_sizes(side: int) -> None:
    drawn = {length: size_to_draw(side, length) for length in range(side, round(WIDE * side) + 1)}
    assert drawn[side] == side
    assert len(set(drawn.values())) <= 16
    assert all(length <= size for length, size in drawn.items())
    assert all((size - side) % 64 == 0 for size in drawn.values())
    assert max(size - length for length, size in drawn.items()) < max(side / 8, 64)


def test_variants_stand_side_by_side(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    shutil.copytree(folder / "splat" / "full", folder / "splat" / "bold")
    viewer = Viewer.open(folder, "bold")
    assert viewer.variants == ("bold", "full")
    assert viewer.start.variants == ("bold",)
    both = replace(viewer.start, variants=viewer.variants)
    left, right = np.split(viewer.draw(both), 2, axis=1)
    assert np.array_equal(left[SIZE // 4 :], right[SIZE // 4 :])
    assert viewer.count_gaussians(both) == 2 * viewer.count_gaussians(viewer.start)
    assert viewer.draw(replace(both, compare=True)).shape == (SIZE, 5 * SIZE, 3)
    assert viewer.draw(both, aspect=3.0).shape == (SIZE, 3 * SIZE, 3)
    assert viewer.draw(both, aspect=1.0).shape == (2 * SIZE, 2 * SIZE, 3)


def test_a_variant_of_another_tracking_is_told_when_it_is_chosen(
    results: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    write_results(tmp_path / "other")  # of three coefficients
    shutil.copytree(tmp_path / "other" / "splat" / "full", folder / "splat" / "other")
    viewer = Viewer.open(folder)
    with pytest.raises(UserError, match="other has 3 expression coefficients and the tracking 2"):
        viewer.draw(replace(viewer.start, variants=("full", "other")))


def test_a_missing_frame_is_told_when_it_is_compared(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    viewer = Viewer.open(folder)
    (folder / "capture" / "FREE" / "222200037" / "00001.jpg").unlink()
    state = replace(viewer.start, sequence="FREE", timestep=1)
    viewer.draw(state)
    with pytest.raises(UserError, match=r"00001\.jpg is missing"):
        viewer.draw(replace(state, compare=True))


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_an_image_is_padded_with_white_to_the_shape_of_the_window(aspect: float) -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    padded = pad_to_aspect(image, aspect)
    assert abs(padded.shape[1] / padded.shape[0] - aspect) < 0.03  # whole pixels
    assert (padded == 0).sum() == image.size
    assert padded.shape[0] == 30 or padded.shape[1] == 40


def test_images_in_motion_are_smaller_where_drawing_is_slow() -> None:
    pace = Pace(1100)
    assert pace.side == 1100
    for _ in range(5):
        pace.learn(2 * SLOW)
    assert pace.side == 275  # half of it would be less than MIN_SIDE
    pace.learn((SLOW + FAST) / 2)  # fast enough, but four times that would not be
    assert pace.side == 275
    for _ in range(5):
        pace.learn(FAST / 2)
    assert pace.side == 1100


def test_small_images_do_not_get_smaller_in_motion() -> None:
    pace = Pace(2 * MIN_SIDE - 1)
    pace.learn(2 * SLOW)
    assert pace.side == 2 * MIN_SIDE - 1
