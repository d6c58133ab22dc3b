"""The paper's tables: means over images, seeds and subjects, beside what was published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from eavatar.errors import UserError
from eavatar.settings import validate
from eavatar.tables.layout import Layout, read_layouts
from eavatar.tables.metrics import DEFINITION
from eavatar.tables.paper import PUBLISHED, paper_table
from tests.scenes import CONFIG

CONTENT = {
    "title": "Self-reenactment",
    "metrics": ["psnr_db", "ssim"],
    "rows": [
        {"label": "NeRFace"},
        {"label": "GHA", "variant": "baseline"},
        {"label": "EAvatar", "variant": "full"},
    ],
    "note": "Tracked with all cameras.",
    "floors": [
        {"label": "expression frozen", "variant": "full", "protocol": "neutral_expression"},
        {"label": "mean image", "variant": "floors", "protocol": "mean_image"},
    ],
}
LAYOUT = validate(Layout, CONTENT, "here")
SUBJECTS = {"074": 0.0, "104": 2.0}  # dB above the former
SEEDS = {"full": 0.0, "full@1": 0.5, "full@7": -0.2}  # dB above the first
NEUTRAL = -3.0


def write_images(path: Path, **protocols: float) -> Path:
    """Two images of each protocol, whose PSNR has the given mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"protocol": name, "camera": str(camera), "psnr_db": mean + shift, "ssim": 0.9, "lpips": ""}
        for name, mean in protocols.items()
        for camera, shift in enumerate((-1, 1))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def measured(tmp_path: Path) -> list[Path]:
    """Two subjects: `full` with three seeds, the baseline with one, and the floors."""
    paths = []
    for subject, of_subject in SUBJECTS.items():
        tables = tmp_path / "results" / subject / "tables"
        for name, of_seed in SEEDS.items():
            mean = 24 + of_subject + of_seed
            own = {"self_reenactment": mean, "neutral_expression": mean + NEUTRAL}
            paths.append(write_images(tables / name / "images.csv", **own))
        paths.append(write_images(tables / "baseline/images.csv", self_reenactment=23 + of_subject))
        paths.append(write_images(tables / "floors.csv", mean_image=15 + of_subject))
    return paths


def read(output: Path) -> pd.DataFrame:
    table = pd.read_csv(output / "table1.csv")
    return table.set_index(["row", "subject", "metric"])


def test_means_and_deviations_are_those_over_seeds(tmp_path, measured):
    table = read(paper_table("table1", LAYOUT, measured, tmp_path))
    own = table.loc["EAvatar", "104", "psnr_db"]
    assert own["measured"] == pytest.approx((26 + 26.5 + 25.8) / 3, abs=1e-6)  # six digits
    # of 0, 0.5 and -0.2, with n - 1
    deviation = ((0.1**2 + 0.4**2 + 0.3**2) / 2) ** 0.5
    assert own["deviation"] == pytest.approx(deviation, abs=1e-6)
    assert own["seeds"] == 3
    average = table.loc["EAvatar", "average", "psnr_db"]
    assert average["measured"] == pytest.approx(25.1, abs=1e-6)
    assert average["deviation"] == pytest.approx(deviation, abs=1e-6)
    assert average["subjects"] == 2
    baseline = table.loc["GHA", "average", "psnr_db"]
    assert (baseline["measured"], baseline["seeds"]) == (24, 1)
    assert pd.isna(baseline["deviation"])


def test_gains_are_taken_seed_by_seed(tmp_path, measured):
    """The seeds' common part is not in a gain's deviation."""
    for path in list(measured):
        if path.parent.name in SEEDS and path.parent.name != "full":
            own = 0.2 * SEEDS[path.parent.name] + SUBJECTS[path.parts[-4]] + 23
            mean = own + SEEDS[path.parent.name]
            twin = path.parents[1] / path.parent.name.replace("full", "baseline") / path.name
            measured.append(write_images(twin, self_reenactment=mean))
    layout = validate(Layout, {**CONTENT, "reference": "GHA"}, "here")
    output = paper_table("table1", layout, measured, tmp_path)
    gain = read(output).loc["EAvatar", "average", "psnr_db"]
    # 1 dB over the baseline, less a fifth of the seed's own: 0, 0.1 and -0.04
    assert gain["gain"] == pytest.approx(1 - 0.02, abs=1e-6)
    assert gain["gain_deviation"] == pytest.approx(gain["deviation"] / 5, abs=1e-6)
    assert gain["published_gain"] == pytest.approx(25.07 - 24.56)
    text = (output / "table1.md").read_text()
    assert "Gain over GHA, seed by seed:" in text
    assert "| EAvatar | +0.98 ± 0.07 | +0.51 |" in text
    with pytest.raises(UserError, match="no row has the label 'XY'"):
        validate(Layout, {**CONTENT, "reference": "XY"}, "here")


def test_the_published_value_and_the_difference_stand_beside_the_average(tmp_path, measured):
    table = read(paper_table("table1", LAYOUT, measured, tmp_path))
    average = table.loc["EAvatar", "average", "psnr_db"]
    assert average["published"] == 25.07  # Table 1
    assert average["difference"] == pytest.approx(25.1 - 25.07, abs=1e-6)
    assert table.loc["EAvatar", "case 2", "psnr_db"]["published"] == 26.72
    assert pd.isna(table.loc["EAvatar", "104", "psnr_db"]["published"])  # subjects are unknown
    unbuilt = table.loc["NeRFace", "average", "psnr_db"]
    assert unbuilt["published"] == 20.85 and pd.isna(unbuilt["measured"])


def test_floors_stand_under_the_rows(tmp_path, measured):
    output = paper_table("table1", LAYOUT, measured, tmp_path)
    table = read(output)
    assert table.loc["expression frozen", "average", "psnr_db"]["measured"] == pytest.approx(22.1)
    assert table.loc["mean image", "074", "psnr_db"]["measured"] == 15
    text = (output / "table1.md").read_text()
    assert text.index("EAvatar") < text.index("*expression frozen*") < text.index("*mean image*")


def test_documents_say_what_was_measured(tmp_path, measured):
    output = paper_table("table1", LAYOUT, measured, tmp_path)
    text = (output / "table1.md").read_text()
    assert text.startswith("# Table 1: Self-reenactment\n")
    assert DEFINITION in text
    assert "| EAvatar | 25.10 ± 0.36 | 25.07 | +0.03 | 0.9000 ± 0.0000 | 0.8570 | +0.0430 |" in text
    assert "| NeRFace | – | 20.85 | – |" in text
    assert "Subjects: 074, 104. ± is the standard deviation over 3 seeds." in text
    assert "arXiv:2508.13537v1" in text and "Tracked with all cameras." in text
    assert "By subject:" in text and "Published, by case:" in text
    tex = (output / "table1.tex").read_text()
    grids = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", tex, re.DOTALL)
    assert len(grids) == 3
    lines = [body.count(r"\\") for _, body in grids]
    assert lines == [6, 5, 4]  # a header; three rows and two floors; those with a value
    for columns, body in grids:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert all(len(row.split(" & ")) == len(columns) for row in rows)
    assert r"25.10 $\pm$ 0.36" in tex


def test_what_is_not_measured_is_named(tmp_path, measured):
    some = [path for path in measured if path.parent.name != "baseline"]
    output = paper_table("table1", LAYOUT, some, tmp_path)
    text = (output / "table1.md").read_text()
    assert "Without a measurement: baseline (variants of config/variants.yaml)." in text
    assert "| GHA | – | 24.56 | – |" in text
    output = paper_table("table1", LAYOUT, [], tmp_path / "nothing")
    assert "Subjects: none." in (output / "table1.md").read_text()


def test_speed_is_a_table_too_with_its_hardware(tmp_path):
    layout = read_layouts(CONFIG / "tables.yaml").tables["table5"]
    paths = []
    for name, rate in {"full": 30.0, "full@1": 34.0}.items():
        path = tmp_path / "results/074/tables" / name / "speed.json"
        path.parent.mkdir(parents=True)
        content = {"frames_per_second": rate, "training_hours": 5.0, "hardware": "a GPU"}
        content["steps_per_second"] = 2 * rate
        path.write_text(json.dumps(content))
        paths.append(path)
    text = (paper_table("table5", layout, paths, tmp_path) / "table5.md").read_text()
    assert (
        "| EAvatar | 5.000 ± 0.000 | 60.000 | -55.000 | 64.0 ± 5.7 | – | – | 32.00 ± 2.83 |" in text
    )
    assert "Measured on: a GPU." in text
    assert DEFINITION not in text


def test_every_row_of_the_layouts_has_its_published_values():
    """And every published row is in a layout: neither label has been changed alone."""
    published = pd.read_csv(PUBLISHED)
    assert published["source"].str.startswith("arXiv:2508.13537v1, Table ").all()
    layouts = read_layouts(CONFIG / "tables.yaml").tables
    assert set(layouts) == set(published["table"])
    for name, layout in layouts.items():
        rows = published[published["table"] == name]
        extra = {row.label for row in layout.rows} - set(rows["row"])
        assert set(rows["row"]) <= {row.label for row in layout.rows}
        assert all(label.startswith("τ_split") for label in extra)  # in a figure of the paper only
        assert set(rows["metric"]) == set(layout.metrics) - {"steps_per_second"}


def test_published_averages_are_those_of_the_cases():
    """Table 1 prints both; what else was typed is checked by no sum."""
    table = pd.read_csv(PUBLISHED)
    table = table[table["table"] == "table1"].pivot_table(
        index=["row", "metric"], columns="case", values="value"
    )
    off = (table.drop(columns="average").mean(axis=1) - table["average"]).abs()
    digits = off.index.get_level_values("metric").map({"psnr_db": 2, "ssim": 3, "lpips": 3})
    assert (off < 10.0**-digits).all()  # half a digit of the cases, and half one of the average


def test_an_unknown_metric_or_a_damaged_table_is_one_sentence(tmp_path):
    layout = validate(Layout, {**CONTENT, "metrics": ["psnr"]}, "here")
    with pytest.raises(UserError, match="table1 has no metric 'psnr'; there are psnr_db"):
        paper_table("table1", layout, [], tmp_path)
    twice = {**CONTENT, "rows": [*CONTENT["rows"], CONTENT["rows"][0]]}
    with pytest.raises(UserError, match="two rows have the label 'NeRFace'"):
        validate(Layout, twice, "here")
    path = tmp_path / "results/074/tables/full/images.csv"
    path.parent.mkdir(parents=True)
    path.write_text("camera,psnr_db\n1,20\n")
    with pytest.raises(UserError, match="holds no measured image"):
        paper_table("table1", LAYOUT, [path], tmp_path)
