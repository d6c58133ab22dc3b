"""Images that no avatar of ours rendered, measured against a subject's held-out frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from eavatar.__main__ import main
from eavatar.data.frames import FrameSet
from eavatar.errors import UserError
from eavatar.settings import EvaluateSettings, Variant
from eavatar.tables.evaluate import evaluate
from eavatar.tables.methods import METHODS, open_method
from eavatar.tables.table import format_metrics, metrics
from tests.scenes.ball import SIZE, Subject

SETTINGS = EvaluateSettings(lpips_net="alex", lpips_required=False, pictures=2)
VIEWS = 3 * 4 - 1  # three timesteps, four cameras, one failed mask


@pytest.fixture(autouse=True)
def no_lpips_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def held_out(subject: Subject) -> Iterator[tuple[str, np.ndarray]]:
    """Name and truth on white, (H, W, 3) RGB uint8, of each view that is measured."""
    folders = subject.results / "capture", subject.results / "face"
    frames = FrameSet.read(*folders, "test", SIZE)
    for index in range(len(frames)):
        cameras = frames.usable_cameras(index)
        images = (frames.views(index, cameras).images * 255).round().to(torch.uint8).numpy()
        for camera, image in zip(cameras, images, strict=True):
            place = f"{frames.sequences[index]}/{frames.serials[camera]}"
            yield f"{place}/{frames.timesteps[index]:05d}.png", image


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def rendered(subject: Subject, tmp_path: Path) -> Path:
    """A folder of images that equal the truth."""
    for name, image in held_out(subject):
        write(tmp_path / "rendered" / name, image)
    return tmp_path / "rendered"


def measured(subject: Subject, images: Path, output: Path) -> pd.DataFrame:
    capture, face = subject.results / "capture", subject.results / "face"
    evaluate(SETTINGS, "images", images, capture, face, output)
    return pd.read_csv(output / "images.csv")


def test_images_that_equal_the_truth_are_perfect(subject, rendered, tmp_path):
    rows = measured(subject, rendered, tmp_path / "tables")
    assert set(rows["protocol"]) == {"self_reenactment"}  # nobody can drive a folder
    assert len(rows) == VIEWS
    assert np.isposinf(rows["psnr_db"]).all()
    assert rows["ssim"].to_numpy() == pytest.approx(1.0)
    assert len(list((tmp_path / "tables" / "pictures").glob("*.png"))) == 2
    table = metrics("ball", {"other": tmp_path / "tables/images.csv"}, tmp_path / "metrics.csv")
    means = pd.read_csv(table)
    assert means["psnr_db"].tolist() == [np.inf]
    assert "∞" in format_metrics(means)


def test_an_offset_has_the_psnr_that_one_computes_by_hand(subject, tmp_path):
    for name, image in held_out(subject):
        # Ten levels towards the middle of the range, so that nothing is clipped.
        levels = image.astype(int)
        write(tmp_path / "off" / name, np.where(levels > 127, levels - 10, levels + 10))
    rows = measured(subject, tmp_path / "off", tmp_path / "tables")
    assert rows["psnr_db"].to_numpy() == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert (rows["ssim"] < 1).all()


def test_the_command_line_measures_images_and_tables_them(subject, rendered, tmp_path, capsys):
    results, output = subject.results, tmp_path / "tables"
    words = ["evaluate", "--settings", SETTINGS.model_dump_json(), "--method", "images"]
    words += ["--source", str(rendered), "--output", str(output)]
    words += ["--capture", str(results / "capture"), "--face", str(results / "face")]
    assert main(words) == 0
    ours = results / "tables" / "full" / "images.csv"
    words = ["metrics", "--subject", "ball", "--variant", "full", "other", "--images", str(ours)]
    words += [str(output / "images.csv"), "--output", str(tmp_path / "metrics.csv")]
    assert main(words) == 0
    means = pd.read_csv(tmp_path / "metrics.csv")
    assert means["variant"].tolist() == ["full", "full", "other"]
    assert main([*words[:4], *words[5:]]) == 2
    assert "--variant and --images" in capsys.readouterr().err


def test_missing_images_are_counted_and_named(subject, rendered):
    views = sorted(rendered.rglob("*.png"))
    for path in views[:5]:
        path.unlink()
    views[5].rename(views[5].with_name("1.png"))
    with pytest.raises(UserError) as caught:
        open_images(subject, rendered)
    first = views[0].relative_to(rendered)
    assert f"lacks 6 of {VIEWS} images: {first}, " in str(caught.value)
    assert f"like {views[5].relative_to(rendered).with_name('1.png')}." in str(caught.value)
    assert "<timestep, 5 digits>.png" in str(caught.value)


def test_more_images_than_are_measured_do_no_harm(subject, rendered):
    failed = rendered / "FREE" / "222200031" / "00000.png"  # its mask failed
    write(failed, np.zeros((8, 8, 3), np.uint8))
    assert open_images(subject, rendered).image_size == SIZE


def test_of_novel_views_the_held_out_cameras_suffice(subject, rendered, tmp_path):
    cameras = sorted({path.parent.name for path in rendered.rglob("*.png")})
    for path in rendered.rglob("*.png"):
        if path.parent.name != cameras[0]:
            path.unlink()
    folders = subject.results / "capture", subject.results / "face", tmp_path / "tables"
    evaluate(SETTINGS, "images", rendered, *folders, held_out=cameras[:1])
    rows = pd.read_csv(tmp_path / "tables" / "images.csv", dtype={"camera": str})
    assert set(rows["camera"]) == {cameras[0]}
    assert np.isposinf(rows["psnr_db"]).all()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((SIZE, SIZE, 4), np.uint8), "RGB with alpha with 8 bits"),
        (np.zeros((SIZE, SIZE, 3), np.uint16), "RGB with 16 bits"),
        (np.zeros((SIZE, SIZE), np.uint8), "grey with 8 bits"),
        (np.zeros((SIZE, SIZE - 1, 3), np.uint8), r"has 63×64 pixels.* must be square"),
        (np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8), r"has 128×128 pixels.* of one size"),
        (None, "is no PNG image"),
    ],
)
def test_an_image_of_another_form_is_one_sentence(subject, rendered, image, sentence):
    path = sorted(rendered.rglob("*.png"))[-1]
    if image is None:
        path.write_bytes(b"\xff\xd8\xff")
    else:
        assert cv2.imwrite(str(path), image)
    with pytest.raises(UserError, match=sentence) as caught:
        open_images(subject, rendered)
    assert str(path) in str(caught.value)


def test_images_larger_than_the_frames_are_refused(subject, rendered, tmp_path):
    for path in rendered.rglob("*.png"):
        write(path, np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8))
    with pytest.raises(UserError, match="larger than the ingested frames"):
        measured(subject, rendered, tmp_path / "tables")


def test_a_damaged_image_and_an_unknown_method_are_one_sentence(subject, rendered, tmp_path):
    path = sorted(rendered.rglob("*.png"))[-1]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"damaged; render it again"):
        measured(subject, rendered, tmp_path / "tables")
    with pytest.raises(
        UserError, match=r"no method 'nerf'; there are avatar, images, nerface, havatar"
    ):
        open_method("nerf", rendered, subject.results / "capture", torch.device("cpu"))
    with pytest.raises(UserError, match="the folder of rendered images is missing"):
        open_images(subject, tmp_path / "nowhere")


def open_images(subject: Subject, folder: Path):
    return open_method("images", folder, subject.results / "capture", torch.device("cpu"))


def test_the_settings_know_every_method():
    assert get_args(Variant.model_fields["method"].annotation) == tuple(METHODS)
