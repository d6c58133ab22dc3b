from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from eavatar.errors import UserError
from eavatar.tables.drawing import compare, order_along_arc
from eavatar.tables.evaluate import _radical_inverse, strongest_of_runs
from eavatar.tables.regions import REGIONS
from eavatar.tables.table import format_metrics, metrics
from tests.scenes.ball import SIZE, Subject


@pytest.fixture
def tables(subject: Subject) -> Path:
    return subject.results / "tables" / "full"


def test_every_held_out_image_is_measured_once(tables: Path) -> None:
    rows = pd.read_csv(tables / "images.csv", dtype={"camera": str})
    names = ["protocol", "sequence", "timestep", "camera", "psnr_db", "ssim", "lpips"]
    assert list(rows.columns)[:7] == names
    assert list(rows.columns)[7:12] == ["ssim_uniform", "lpips_alex", "lpips_vgg", "psnr_masked",
                                        "ssim_masked"]  # fmt: skip
    assert list(rows.columns)[12:14] == ["psnr_with_set", "ssim_with_set"]
    assert list(rows.columns)[14:] == [f"psnr_{name}" for name in REGIONS]
    assert len(rows) == 2 * (3 * 4 - 1)
    assert rows[(rows["timestep"] == 0) & (rows["camera"] == "222200031")].empty  # its mask failed
    assert not rows.duplicated(names[:4]).any()
    assert set(rows["sequence"]) == {"FREE"}
    assert rows["lpips"].isna().all()


def test_the_avatar_matches_its_own_images(tables: Path) -> None:
    means = pd.read_csv(tables / "images.csv").groupby("protocol")["psnr_db"].mean()
    # Truth is the avatar's own render, apart from JPEG and the mask's edge.
    assert means["self_reenactment"] > 30
    assert means["self_reenactment"] > means["neutral_expression"] + 1


def test_pictures_show_truth_render_and_error(tables: Path) -> None:
    paths = sorted((tables / "pictures").glob("*.png"))
    assert len(paths) == 4
    assert not (tables / "pictures" / "old.png").exists()
    # The strongest timestep from the camera in the middle of the arc.
    assert "FREE_00002_222200030.png" in [path.name for path in paths]
    assert cv2.imread(str(paths[0])).shape == (SIZE, 3 * SIZE, 3)


def test_table_averages_over_images(tables: Path, subject: Subject) -> None:
    rows = pd.read_csv(subject.results / "metrics.csv")
    images = pd.read_csv(tables / "images.csv")
    assert list(rows["protocol"]) == ["self_reenactment", "neutral_expression"]
    assert list(rows["cameras"]) == [4, 4]
    assert list(rows["images"]) == [11, 11]
    expected = images[images["protocol"] == "self_reenactment"]["ssim"].mean()
    assert rows["ssim"][0] == pytest.approx(expected, abs=1e-6)  # written with six digits
    assert "–" in format_metrics(rows)


def test_a_region_is_averaged_over_the_images_that_show_it(tmp_path: Path, tables: Path) -> None:
    images = pd.read_csv(tables / "images.csv", dtype={"camera": str})
    images["psnr_eyes"] = [20.0, np.nan] * (len(images) // 2)
    images.to_csv(tmp_path / "images.csv", index=False)
    metrics("ball", {"full": tmp_path / "images.csv"}, tmp_path / "metrics.csv")
    rows = pd.read_csv(tmp_path / "regions.csv")
    assert list(rows.columns[:5]) == ["subject", "variant", "protocol", "cameras", "images"]
    assert list(rows.columns[5:]) == [f"psnr_{name}" for name in REGIONS]
    assert rows["psnr_eyes"].tolist() == [20.0, 20.0]


def test_what_is_drawn_outside_the_mask_counts_in_the_whole_image_alone(tables: Path) -> None:
    """The ball's renders lie within its mask, on white: all errors are inside."""
    images = pd.read_csv(tables / "images.csv")
    assert (images["psnr_masked"] < images["psnr_db"]).all()


def test_table_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text("protocol,camera,psnr_db,ssim\na,1,20,0.9\n")
    with pytest.raises(UserError, match="lpips"):
        metrics("ball", {"full": path}, tmp_path / "metrics.csv")


def test_comparison_colours() -> None:
    truth, render = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    render[0, 0] = 1
    strip = compare(truth, render)
    assert strip.shape == (2, 6, 3)
    assert strip[1, 5].tolist() == [255, 255, 255]
    assert strip[0, 4].tolist() == [50, 0, 60]


def test_arc_goes_from_the_heads_right_to_its_left() -> None:
    centres = np.array([[0.5, 0, 1], [-0.5, 0, 1], [0, 0, 1]])
    assert order_along_arc(centres, np.zeros(3), np.zeros(3)) == [1, 2, 0]
    # A head that looks away from the world's z sees the same cameras the other way round.
    turned = np.array([0, np.pi * 0.75, 0])
    behind = centres * [1, 1, -1]
    assert order_along_arc(behind, turned, np.zeros(3))[1] != 1


def test_radical_inverse_fills_the_interval() -> None:
    assert [_radical_inverse(i) for i in range(1, 5)] == [0.5, 0.25, 0.75, 0.125]


def test_the_strongest_of_each_run_is_shown() -> None:
    strength = np.array([0, 3, 1, 2, 5, 0, 0, 1], np.float32)
    assert strongest_of_runs(strength, 2) == [1, 4]
    assert strongest_of_runs(strength[:2], 6) == [0, 1]
