"""The paper's figures: which pictures are shown, and how they are cropped and put together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.io import Mesh, write_arrays, write_cameras, write_mesh
from eavatar.settings import validate
from eavatar.tables.drawing import write_image
from eavatar.tables.figures import GAP, HEADER, TILE, Picture, find_window, paper_figure
from eavatar.tables.layout import FigureLayout
from tests.scenes.small_results import make_camera, make_tracking

SIDE = 64
TRUTH, OURS, OTHER = 250, 150, 50
CAMERA = "front_left"  # of a rig of one's own
LAYOUT = {
    "title": "Control",
    "columns": [{"label": "truth"}, {"label": "a", "variant": "a"}, {"label": "b", "variant": "b"}],
    "views": 2,
}


def make_layout(**changes: object) -> FigureLayout:
    return validate(FigureLayout, LAYOUT | changes, "here")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three timesteps of growing expression; strips whose brightness tells column and timestep."""
    write_cameras(tmp_path / "cameras.json", {CAMERA: make_camera(0)})
    tracking = make_tracking()
    tracking.expression[:] = np.array([2.0, 1, 3])[:, None]
    ring = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68)), 0 * np.arange(68)], axis=1)
    tracking.landmarks[:] = 0.02 * ring
    write_arrays(tmp_path / "tracking/FREE_2.npz", tracking)
    for variant, shade in {"a": OURS, "b": OTHER}.items():
        for timestep in range(3):
            strip = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
            strip[:, :SIDE] = TRUTH
            strip[:, SIDE : 2 * SIDE] = shade + timestep
            name = f"FREE_2_{timestep:05d}_{CAMERA}.png"
            write_image(tmp_path / variant / "pictures" / name, strip)
    return tmp_path


def draw(place: Path, layout: FigureLayout) -> np.ndarray:
    sources = [place / name / "pictures" for name in layout.variants]
    words = (place / "cameras.json", place / "tracking", place / "figure.png")
    return cv2.imread(str(paper_figure(layout, sources, *words)))[..., 0]


def test_columns_are_truth_and_variants_of_the_strongest_expressions(place):
    image = draw(place, make_layout())
    assert image.shape == (HEADER + 2 * (TILE + GAP), 3 * (TILE + GAP) - GAP)
    middles = [TILE // 2 + (TILE + GAP) * number for number in range(3)]
    found = [[image[HEADER + row, column] for column in middles] for row in middles[:2]]
    assert found == [[TRUTH, OURS + 2, OTHER + 2], [TRUTH, OURS, OTHER]]  # timesteps 2, then 0
    assert image[:HEADER].min() < 100  # labels


def test_only_views_that_all_variants_have_are_shown(place):
    (place / "b/pictures" / f"FREE_2_00002_{CAMERA}.png").unlink()
    image = draw(place, make_layout(views=1))
    assert image[HEADER + TILE // 2, TILE + GAP + TILE // 2] == OURS
    for path in (place / "a/pictures").glob("*"):
        path.unlink()
    with pytest.raises(UserError, match="a, b have no view in common"):
        draw(place, make_layout())


def test_each_crop_is_a_row_of_its_own(place):
    image = draw(place, make_layout(views=1, crops=["whole", "mouth"]))
    assert image.shape[0] > HEADER + TILE + 2 * GAP + TILE // 3
    column = image[HEADER + TILE + GAP + 20, TILE + GAP :]
    assert column[20] == OURS + 2


@pytest.mark.parametrize("crop", ["mouth", "eyes", "brows"])
def test_a_crop_holds_its_landmarks_and_stays_in_the_image(crop):
    region = {"mouth": slice(48, 68), "eyes": slice(36, 48), "brows": slice(17, 27)}[crop]
    random = np.random.default_rng(0)
    for corner in ([2, 3], [60, 70], [85, 90]):
        points = corner + random.uniform(0, 10, (68, 2))
        rows, columns = find_window(points, crop, 100)
        assert 0 <= rows.start < rows.stop <= 100 and 0 <= columns.start < columns.stop <= 100
        x, y = points[region].T
        assert columns.start <= x.min() and x.max() <= columns.stop
        assert rows.start <= y.min() and y.max() <= rows.stop
        assert rows.stop - rows.start < 40  # a crop
    assert find_window(points, "whole", 100) == (slice(0, 100), slice(0, 100))


def test_surfaces_of_the_steps_that_all_have_are_drawn_from_two_sides(place):
    vertices = np.array([[-0.8, -1, 0], [0.8, -1, 0], [0, 1, 0]], np.float32)
    columns = [{"label": name, "variant": name} for name in "ab"]
    for name, steps in {"a": (0, 30, 500), "b": (0, 30, 400)}.items():
        for step in steps:
            mesh = Mesh((1 - step / 60) * vertices, np.array([[0, 1, 2]]), None)
            write_mesh(place / name / f"{step:05d}.ply", mesh)
    layout = make_layout(columns=columns, surfaces=True)
    words = (place / "cameras.json", place / "tracking", place / "figure.png")

    def draw() -> np.ndarray:
        return cv2.imread(str(paper_figure(layout, [place / "a", place / "b"], *words)))[..., 0]

    image = draw()
    height = (image.shape[0] - HEADER) // 2 - GAP  # of a row, of steps 0 and 30
    assert image.shape[1] == 2 * (TILE + GAP) - GAP and 0.4 * TILE < height < TILE
    first, second = (image[HEADER + row * (height + GAP) :][HEADER:height] for row in range(2))
    front, side = (
        (half < 250).sum() for half in (first[:, : TILE // 2], first[:, TILE // 2 : TILE])
    )
    assert side / front == pytest.approx(0.5, abs=0.1)  # cos 60°; the rim of a triangle
    assert (second < 250).sum() < 0.5 * (first < 250).sum()  # a quarter
    assert (image[HEADER : 2 * HEADER, : TILE // 4] < 100).any()  # which step it is
    for path in (place / "b").glob("*.ply"):
        path.unlink()
    with pytest.raises(UserError, match="no step in common"):
        draw()


def test_a_picture_is_told_by_its_name():
    for sequence, camera in (("FREE", "222200037"), ("take_00012", "front_left"), ("a", "b_1")):
        picture = Picture(sequence, 3, camera)
        assert Picture.of(Path(picture.name)) == picture
    with pytest.raises(UserError, match=r"left\.png is no picture of `evaluate`"):
        Picture.of(Path("FREE_left.png"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"columns": [{"label": "truth"}]}, "no column has a variant"),
        ({"surfaces": True}, "of surfaces each column needs a variant"),
    ],
)
def test_a_layout_that_shows_nothing_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        make_layout(**changes)
