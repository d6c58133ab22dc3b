"""The way in for Python: what `eavatar` offers; the examples of docs/api.md on stored results."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import eavatar
from eavatar.avatar.files import FORMAT
from tests.scenes import ROOT
from tests.stored import FOLDER

RESULTS = FOLDER / f"format_{FORMAT}"
SIZE = 64
HEAVY = ("torch", "numpy", "cv2", "pydantic", "yaml", "scipy")


def examples(page: Path) -> str:
    """The page's Python, in order."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(blocks)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the examples of docs/api.md leave behind, run beside ``results/demo``."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "results").mkdir()
    (folder / "results" / "demo").symlink_to(RESULTS)
    names: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(examples(ROOT / "docs" / "api.md"), names)
        yield names


@pytest.fixture(scope="module")
def avatar() -> eavatar.Avatar:
    return eavatar.load_avatar(RESULTS, device="cpu")


@pytest.fixture
def step() -> eavatar.Timestep:
    return eavatar.read_tracking(RESULTS / "face" / "tracking" / "FREE.npz")[0]


@pytest.fixture
def camera() -> eavatar.Camera:
    return eavatar.read_cameras(RESULTS / "capture" / "cameras.json")["222200037"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, eavatar; print([m for m in {HEAVY!r} if m in sys.modules]); dir(eavatar)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_that_is_offered_is_there() -> None:
    assert set(eavatar.__all__) <= set(dir(eavatar))
    for name in eavatar.__all__:
        assert getattr(eavatar, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'load_avatars'"):
        eavatar.load_avatars  # type: ignore[attr-defined]  # noqa: B018


def test_the_examples_draw_what_they_say(shown: dict[str, Any]) -> None:
    shapes = {
        "image": (SIZE, SIZE, 3),
        "small": (100, 100, 3),
        "views": (2, SIZE, SIZE, 3),
        "moving": (3, SIZE, SIZE, 3),
        "both": (2, 2, SIZE, SIZE, 3),
        "from_front": (512, 512, 3),
        "neutral": (SIZE, SIZE, 3),
        "subdued": (3, SIZE, SIZE, 3),
    }
    for name, shape in shapes.items():
        image = shown[name]
        assert image.shape == shape and image.dtype == torch.float32, name
        assert 0.95 < image.max() <= 1 and 0 <= image.min() < 0.7, name  # white, and the head
    # Convolutions of one image and of several may add in another order.
    torch.testing.assert_close(shown["views"][1], shown["image"], atol=1e-5, rtol=0)
    assert torch.equal(shown["both"][0], shown["views"])
    assert torch.equal(shown["moving"][0], shown["image"])
    written = cv2.imread(str(shown["folder"] / "first.png"))[..., ::-1]
    assert np.abs(written - 255 * shown["image"].cpu().numpy()).max() < 0.51  # rounding to 8 bits
    change = (shown["neutral"] - shown["image"]).abs().max()
    halved = (shown["subdued"][0] - shown["image"]).abs().max()
    assert change > 0.1 and 0 < halved < change


def test_the_readme_begins_as_the_page_does() -> None:
    first = examples(ROOT / "README.md").strip()
    assert first and first in examples(ROOT / "docs" / "api.md")


def test_tensors_and_arrays_of_any_precision_draw_the_same(
    avatar: eavatar.Avatar, step: eavatar.Timestep, camera: eavatar.Camera
) -> None:
    expected = avatar.render(step, camera)
    values = vars(step).items()
    doubles = replace(step, **{name: value.astype(np.float64) for name, value in values})
    tensors = replace(step, **{name: torch.from_numpy(value) for name, value in values})
    assert torch.equal(avatar.render(doubles, camera), expected)
    assert torch.equal(avatar.render(tensors, camera), expected)


def test_an_avatar_that_has_drawn_can_be_moved(
    step: eavatar.Timestep, camera: eavatar.Camera
) -> None:
    """To another device or type, with all that it keeps between images."""
    avatar = eavatar.load_avatar(RESULTS, device="cpu")
    avatar.render(step, camera)
    kept = avatar.arrangement.weights
    assert kept.dtype == torch.float32
    assert avatar.double().arrangement.weights.dtype == torch.float64
    assert torch.equal(avatar.float().arrangement.weights, kept)


@pytest.mark.parametrize("size", [33, 50, 129, 200])
def test_any_size_shows_the_same_view(
    avatar: eavatar.Avatar, step: eavatar.Timestep, camera: eavatar.Camera, size: int
) -> None:
    image, expected = (avatar.render(step, c) for c in (camera.resize(size, size), camera))
    assert image.shape == (size, size, 3)
    first, second = (cv2.resize(x.numpy(), (16, 16), interpolation=cv2.INTER_AREA)
                     for x in (image, expected))  # fmt: skip
    # Two ways to average: the edge of the head moves by a tenth of these pixels at most.
    assert np.abs(first - second).max() < 0.1 * np.ptp(second)


def test_a_crop_is_a_part_of_the_image(
    avatar: eavatar.Avatar, step: eavatar.Timestep, camera: eavatar.Camera
) -> None:
    """At the training's size no pixel is resampled, whether its sides are even or not."""
    whole = avatar.render(step, camera)
    part = avatar.render(step, camera.crop(0, 20, 64, 31))
    assert part.shape == (31, 64, 3)
    # The upsampler sees nothing beyond the border: two layers of 3×3 at half the size, and one.
    torch.testing.assert_close(part[8:-8], whole[28:43], atol=1e-5, rtol=0)


def test_what_cannot_be_drawn_is_one_sentence(
    avatar: eavatar.Avatar, step: eavatar.Timestep, camera: eavatar.Camera
) -> None:
    with pytest.raises(eavatar.UserError, match=r"has the shape \(3,\), but the avatar has 4"):
        avatar.render(step.with_expression([0, 0, 0]), camera)
    with pytest.raises(eavatar.UserError, match="one image size, not 32×32, 64×64"):
        avatar.render(step, [camera, camera.resize(32, 32)])
    with pytest.raises(eavatar.UserError, match="no timestep"):
        avatar.render([], camera)
    with pytest.raises(eavatar.UserError, match="not none"):
        avatar.render(step, {})


def test_an_avatar_is_found_in_the_results(tmp_path: Path) -> None:
    place = eavatar.load_avatar(str(RESULTS / "splat" / "full"), device="cpu")
    assert len(place.neutral) == len(eavatar.load_avatar(RESULTS, device="cpu").neutral) == 64
    with pytest.raises(eavatar.UserError, match="no variant 'other'; name one of: full"):
        eavatar.load_avatar(RESULTS, variant="other")
    with pytest.raises(eavatar.UserError, match="nowhere does not exist"):
        eavatar.load_avatar(tmp_path / "nowhere")
    (tmp_path / "demo" / "capture").mkdir(parents=True)
    with pytest.raises(eavatar.UserError, match="it holds those of demo"):
        eavatar.load_avatar(tmp_path)
    with pytest.raises(eavatar.UserError, match="no trained model in splat/ yet; train it with"):
        eavatar.load_avatar(tmp_path / "demo")
