from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eavatar.__main__ import main
from eavatar.arrays import Float32
from eavatar.avatar.files import read_avatar, write_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.io import Sequences, write_sequences
from eavatar.settings import Settings
from eavatar.view.blendshapes import distil, draw_linear, follow
from eavatar.view.page import (
    head_poses,
    pack_avatar,
    pack_blocks,
    pack_columns,
    pick_distinct,
    unpack_avatar,
)
from tests.scenes.chromium import MISSING, Page, find_chromium, open_page
from tests.scenes.pages import NEUTRAL, PageView, draw_page
from tests.scenes.small_avatar import SIZE, make_avatar
from tests.scenes.small_results import TIMESTEPS, make_camera, make_tracking, write_results


def make_half_still_avatar() -> Avatar:
    """The small avatar, whose lower half is torso, with a mean pose that is not none."""
    avatar = make_avatar()
    torso = avatar.generator.torso
    torso.step.data = torch.tensor([-0.2, 0.4])
    torso.rest_pose[:] = torch.tensor([0.1, -0.2, 0.05, 0.005, 0.0, -0.01])
    return avatar


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_results(tmp_path_factory.mktemp("results") / "a<b")
    write_sequences(root / "capture" / "sequences.json", Sequences(("FREE",), ("FREE",)))
    write_avatar(root / "splat" / "full", make_half_still_avatar(), Settings())
    return root


@pytest.fixture(scope="module")
def path(results: Path) -> Path:
    assert main(["export-page", str(results), "--components", "2"]) == 0
    return results / "splat" / "full" / "avatar.html"


@pytest.fixture(scope="module")
def page(path: Path) -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip(MISSING)
    with open_page(path.as_uri()) as page:
        page.run("await started;")
        yield page
    assert page.faults == []
    assert page.requests == [path.as_uri()]


def test_columns_come_back_within_half_a_step_of_16_bits() -> None:
    values = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * [1, 10, 0]
    spans = np.ptp(values, axis=0)
    error = np.abs(pack_columns(values.astype(np.float32)).values - values).max(axis=0)
    assert (error <= spans / 65535 / 2 + 1e-6 * spans).all()  # and the rounding of float32


def test_blocks_come_back_within_half_a_step_of_8_bits_and_zero_stays() -> None:
    values = np.random.default_rng(0).normal(size=(2, 2, 500, 3)).astype(np.float32)
    values[0] *= 100
    values[1, 1] = 0
    values[..., ::2, :] = 0
    restored = pack_blocks(values).values
    steps = np.abs(values).max(axis=(2, 3), keepdims=True) / 127
    assert (np.abs(restored - values) <= 0.5001 * steps).all()
    assert (restored[values == 0] == 0).all()


def test_a_packed_avatar_keeps_every_value_in_its_place() -> None:
    linear = distil(make_half_still_avatar(), list(make_tracking()), 2)
    restored = unpack_avatar(pack_avatar(linear), torch.device("cpu"))
    for name, value in vars(linear).items():
        # Half a step of the coarsest: 8 bits of a component whose largest value is the range.
        tolerance = float(value.abs().max()) / 127
        torch.testing.assert_close(getattr(restored, name), value, atol=tolerance, rtol=0)


def test_poses_from_the_mean_pose_lead_to_the_tracked_ones() -> None:
    avatar, tracking = make_half_still_avatar(), make_tracking()
    rest, scale = avatar.generator.torso.rest_pose.numpy(), avatar.settings.scale
    points = np.random.default_rng(0).normal(size=(20, 3))
    for pose, step in zip(head_poses(avatar, tracking), tracking, strict=True):
        moved = Rotation.from_quat(pose[:4], scalar_first=True).apply(points) + pose[4:]
        found = scale * Rotation.from_rotvec(rest[:3]).apply(moved) + rest[3:]
        expected = scale * Rotation.from_rotvec(step.rotation).apply(points) + step.translation
        np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 of values around 1


def test_distinct_expressions_are_the_extremes() -> None:
    rows = np.array([[0.1, 0], [5, 0], [4.9, 0.1], [0, -3], [0.2, 0.1]], np.float32)
    assert pick_distinct(rows, 2) == [1, 3]
    assert len(pick_distinct(rows, 9)) == 5


def test_the_page_is_one_file_that_names_no_address(path: Path) -> None:
    text = path.read_text()
    assert "<title>Avatar of a&lt;b</title>" in text
    assert not [word for word in ("://", "src=", "href=", "import") if word in text]


def test_a_short_capture_has_as_many_blendshapes_as_timesteps(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "avatar.html"
    assert main(["export-page", str(results), "--output", str(output)]) == 0
    assert "Gaussians, 3 blendshapes" in capsys.readouterr().out
    assert output.is_file()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--sequence", "EYES"], "holds no sequence 'EYES'"),
        (["--variant", "coarse"], "holds no variant 'coarse'"),
        (["--components", "4"], "from 1 to 3"),
        (["--rate", "0"], "--rate 0.0"),
        (["--rate", "inf"], "--rate inf"),
        (["--output", "avatar.ply"], "avatar.ply does not name a page"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    results: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main(["export-page", str(results), *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_browser_draws_what_the_networks_draw(results: Path, page: Page) -> None:
    avatar = read_avatar(results / "splat" / "full")
    angles = (-60, 0, 40)
    batch = CameraBatch.of([make_camera(a).resize(SIZE, SIZE) for a in angles], avatar.device)
    cameras = [make_camera(a).resize(SIZE // 2, SIZE // 2) for a in angles]
    timesteps = [NEUTRAL, *range(TIMESTEPS)]
    images = draw_page(page, avatar, [PageView(t, c) for t in timesteps for c in cameras])
    drawn = torch.from_numpy(np.stack(images)).unflatten(0, (len(timesteps), len(angles)))

    steps = list(make_tracking())
    linear = distil(avatar, steps, 2)
    rest, still = avatar.generator.torso.rest_pose, torch.zeros(2)
    poses = torch.from_numpy(make_tracking().poses)
    rows = zip([still, *follow(avatar, linear, steps)], [rest, *poses], strict=True)
    for shown, (row, pose) in zip(drawn, rows, strict=True):
        with torch.no_grad():
            expected = draw_linear(avatar, linear, row, pose, batch)
        # A framebuffer of 8 bits rounds once for each of some dozens of layers.
        assert -10 * float((shown - expected).square().mean().log10()) > 40
        assert float((shown - 1).abs().max()) > 0.3  # there is something to see


def test_a_slider_moves_what_is_seen_and_neutral_brings_it_back(page: Page) -> None:
    before = page.screenshot("canvas")
    page.click("label:nth-child(1) input", 0.95)
    moved = page.screenshot("canvas")
    page.click("button.neutral")
    assert differ(before, moved)
    assert not differ(before, page.screenshot("canvas"))


def test_each_button_of_an_expression_shows_another_one(page: Page) -> None:
    assert (
        page.run("return document.getElementById('expressions-name').innerText;") == "Expressions"
    )
    images = [page.screenshot("canvas")]
    for number in range(1, TIMESTEPS + 1):
        page.click(f".expression:nth-of-type({number})")
        images.append(page.screenshot("canvas"))
    page.click("button.neutral")
    assert all(differ(first, second) for first, second in pairwise(images))


def test_playing_moves_until_it_is_paused(page: Page) -> None:
    page.click("button.play")
    first = page.screenshot("canvas")
    moved = any(differ(first, page.screenshot("canvas")) for _ in range(20))
    playing = page.run("return document.querySelector('.play').textContent")
    page.click("button.play")
    third, fourth = page.screenshot("canvas"), page.screenshot("canvas")
    page.click("button.neutral")
    assert moved
    assert playing == "Pause"
    assert not differ(third, fourth)


def test_dragging_turns_the_head_and_a_double_click_returns(page: Page) -> None:
    before = page.screenshot("canvas")
    for kind, x in (("mousePressed", 200), ("mouseMoved", 260), ("mouseReleased", 260)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=300, button="left", clickCount=1)
    turned = page.screenshot("canvas")
    page.click("canvas", count=2)
    assert differ(before, turned)
    assert not differ(before, page.screenshot("canvas"))


def test_a_phone_shows_all_and_two_fingers_zoom(path: Path) -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)
    with open_page(path.as_uri(), width=390, height=800) as page:
        page.run("await started;")
        before = page.screenshot("canvas")
        for kind, fingers in (
            ("touchStart", (180, 210)),
            ("touchMove", (120, 270)),
            ("touchEnd", ()),
        ):
            points = [{"x": x, "y": 200, "id": number} for number, x in enumerate(fingers)]
            page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        after = page.screenshot("canvas")
        assert page.run("return document.documentElement.scrollWidth") == 390
        assert page.run("return document.querySelector('aside').getBoundingClientRect().top") > 400
    assert before.shape[1] == 390
    assert (after < 0.9).mean() > 1.2 * (before < 0.9).mean()  # larger on the white ground
    assert page.faults == []


def differ(first: Float32, second: Float32) -> bool:
    """Whether two images are more than rounding apart in some pixel."""
    return bool(np.abs(first - second).max() > 0.02)
