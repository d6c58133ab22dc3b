"""The page on all subjects."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from eavatar.__main__ import main
from eavatar.io import Failure, write_rows
from eavatar.provenance import recorded
from tests.scenes.ball import Subject
from tests.tables.test_report import Balanced


@pytest.fixture
def results(subject: Subject, tmp_path: Path) -> Path:
    """Two subjects of the same images, of which the second is measured 2 dB better."""
    for name, gain in {"a b": 0.0, "c": 2.0}.items():
        folder = tmp_path / name
        folder.mkdir()
        for part in ("face", "tables"):
            (folder / part).symlink_to(subject.results / part)
        for table, column in {"metrics.csv": "psnr_db", "regions.csv": "psnr_eyes"}.items():
            means = pd.read_csv(subject.results / table).assign(subject=name)
            means[column] = 20 + gain
            means.to_csv(folder / table, index=False)
        with recorded("metrics", "1.2.3", {}, [], folder / "metrics.csv"):
            pass
    return tmp_path


def write(results: Path, *shown: str) -> int:
    words = ["--results", str(results / "a b"), str(results / "c"), "--shown", *shown]
    return main(["overview", *words, "--output", str(results / "overview.html")])


def test_page_has_all_subjects_their_average_and_the_way_to_their_pages(results: Path) -> None:
    assert write(results, "full", "full") == 0
    page = (results / "overview.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    tables = re.findall(r"<p><b>(.*?)</b></p>(.*?)</table>", page)
    assert [name for name, _ in tables] == 2 * ["average", "a b", "c"]  # metrics, then regions
    for (_, table), value in zip(tables, 2 * ("21.00", "20.00", "22.00"), strict=True):
        assert f"<tr><td>full</td><td>self_reenactment</td><td>{value}</td>" in table
    assert re.findall(r'href="([^"]*)"', page) == ["a%20b/report.html", "c/report.html"]
    assert page.count('src="data:image/jpeg') == 2
    assert page.count("EAvatar 1.2.3") == 2


def test_a_subject_without_the_variant_or_its_picture_is_told(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(results, "full", "other") == 2
    assert "other/pictures holds no picture; run `evaluate` again" in capsys.readouterr().err
    assert write(results, "full") == 2
    assert "need as many words" in capsys.readouterr().err


def test_what_failed_is_on_the_page_beside_the_others_or_alone(results: Path) -> None:
    failure = Failure("d", "check", "a.mp4 ends <early>.", "results/d/logs/check/1.log")
    write_rows(results / "failed.csv", [failure])
    words = ["--failures", str(results / "failed.csv"), "--output", str(results / "overview.html")]
    shown = ["--results", str(results / "c"), "--shown", "full"]
    for more in (shown, []):
        assert main(["overview", *more, *words]) == 0
        page = (results / "overview.html").read_text()
        assert "<td>d</td><td>check</td><td>a.mp4 ends &lt;early&gt;.</td>" in page
        assert ("c/report.html" in page) == bool(more)
