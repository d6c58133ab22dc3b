"""A head cut out of a frame: by its mask, off at the neck, in a square with a margin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.prior.portrait import Head, cover_above_neck, keep_largest, make_portrait
from eavatar.prior.template import generic_head
from eavatar.transforms import Similarity

SIZE, FOCAL, DISTANCE = 200, 400.0, 1.0
CHIN = generic_head().landmarks[8, 1]


def looking(yaw: float = 0, roll: float = 0) -> Camera:
    """A camera a metre from the origin, which it sees in the middle; OpenCV's axes."""
    turn, lean = np.radians([yaw, roll])
    back = np.array([np.sin(turn), 0, np.cos(turn)])
    right = np.array([np.cos(turn), 0, -np.sin(turn)])
    axes = np.stack([right, [0, -1, 0], -back])
    spin = np.array([[np.cos(lean), -np.sin(lean), 0], [np.sin(lean), np.cos(lean), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = spin @ axes
    pose[:3, 3] = [0, 0, DISTANCE]
    middle = SIZE / 2
    intrinsics = np.array([[FOCAL, 0, middle], [0, FOCAL, middle], [0, 0, 1]])
    return Camera(intrinsics, pose, SIZE, SIZE)


def head(rotation: np.ndarray | None = None) -> Head:
    """The generic head with its origin in the world's."""
    turned = np.eye(3) if rotation is None else rotation
    return Head(Similarity(0.1, turned, np.zeros(3)), generic_head().landmarks)


@pytest.mark.parametrize("yaw", [0, 50, 90, 180])
def test_the_cut_is_where_the_neck_is_seen_that_far_below_the_chin(yaw: float) -> None:
    camera = looking(yaw)
    cover = cover_above_neck(camera, head(), 0.6)
    ears = generic_head().landmarks[[0, 16]].mean(axis=0)
    pixels, _ = camera.project(0.1 * np.array([[ears[0], CHIN - 0.6, ears[2]]]))
    # it is level for a camera at the height of the origin, and covers whole rows above
    assert cover.sum(axis=0) == pytest.approx(np.full(SIZE, pixels[0, 1]), abs=1e-6)


def test_the_cut_leans_with_the_head_in_the_image() -> None:
    cover = cover_above_neck(looking(roll=20), head(), 0.3)
    edge = cover.sum(axis=0)
    slope = np.polyfit(np.arange(60, 140), edge[60:140], 1)[0]
    assert np.degrees(np.arctan(slope)) == pytest.approx(20, abs=0.5)
    assert cover[0, SIZE // 2] == 1 and cover[-1, SIZE // 2] == 0


@pytest.mark.parametrize("roll", [0, 60, 90, 180, 270])
def test_the_cut_is_where_the_plane_is_as_far_away_as_the_neck_whatever_the_roll(
    roll: float,
) -> None:
    """Also for a camera that is mounted on its side, before a head that nods and leans."""
    posed = head(Rotation.from_euler("xz", [25, 15], degrees=True).as_matrix())
    camera = looking(yaw=30, roll=roll)
    cover = cover_above_neck(camera, posed, 0.3)
    ears = generic_head().landmarks[[0, 16]].mean(axis=0)
    neck = np.array([ears[0], CHIN - 0.3, ears[2]])
    turn = np.linspace(0, 2 * np.pi, 721)
    ring = neck + 0.3 * np.stack([np.cos(turn), 0 * turn, np.sin(turn)], axis=1)
    pixels, depths = camera.project(posed.pose.apply(np.vstack([neck, ring])))
    order = np.abs(depths[1:] - depths[0]).argsort()[:2]  # of the ring, at the neck's depth
    assert np.abs(np.diff(order)) == 360  # on either side
    for column, row in pixels[[0, *(1 + order)]]:
        around = cover[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2]
        assert 0 < around.mean() < 1  # within a pixel or two of the edge


def test_a_portrait_is_square_with_a_tenth_of_margin_and_keeps_pixels() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[60:110, 40:140] = 255  # above the neck: 100 wide, 50 high
    portrait = make_portrait(image, mask, looking(), head(), 0.6)
    assert portrait.shape == (120, 120, 4)
    rows, columns = np.nonzero(portrait[..., 3])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 109, 35, 84)
    np.testing.assert_array_equal(portrait[35:85, 10:110, :3], image[60:110, 40:140])


def test_what_leaves_the_frame_is_transparent() -> None:
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:100, 150:] = 255  # to the upper right corner
    portrait = make_portrait(image, mask, looking(), head(), 0.6)
    assert portrait.shape == (120, 120, 4)
    assert portrait[:10, :, 3].max() == 0 and portrait[:, -1, 3].max() == 0
    assert portrait[10:110, 35:85, 3].min() == 255


def test_the_body_and_what_is_apart_are_left_out() -> None:
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask[40:, 70:130] = 255  # a person to the lower border
    mask[20:40, 170:190] = 255  # a lamp
    portrait = make_portrait(image, mask, looking(), head(), 0.6)
    ears = generic_head().landmarks[[0, 16]].mean(axis=0)
    cut = looking().project(0.1 * np.array([[0, CHIN - 0.6, ears[2]]]))[0][0, 1]
    height = np.count_nonzero(portrait[..., 3].max(axis=1))
    assert height == pytest.approx(cut - 40, abs=1.5)
    assert np.count_nonzero(portrait[..., 3].max(axis=0)) == 60


def test_soft_hair_stays_with_the_head() -> None:
    alpha = np.zeros((20, 20))
    alpha[5:15, 5:15] = 255
    alpha[4, 5:15] = 30  # soft, and touching
    alpha[18, 2] = 200
    kept = keep_largest(alpha)
    assert kept[4, 8] == 30 and kept[18, 2] == 0


def test_a_mask_without_a_head_is_one_sentence() -> None:
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask[190:] = 255
    with pytest.raises(UserError, match="the mask has nothing above the neck; look at"):
        make_portrait(image, mask, looking(), head(), 0.6)
