from __future__ import annotations

import argparse
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import trimesh

from benchmarks.prior_gain import CHANGES, CONFIG, Run, outer_points, sdf_settings, write_rows
from benchmarks.prior_gain_report import AVATAR, SURFACE, reach, report
from eavatar.io import Mesh
from eavatar.settings import read_config

ERRORS = {  # of the face after 0, 100 and 1000 steps
    Run("good", 0): (0.9, 0.5, 0.4),
    Run("good", 1): (2.9, 1.1, 0.6),
    Run("none", 0): (6.0, 2.0, 1.1),
    Run("none", 1): (6.0, 3.0, 0.9),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run, errors in ERRORS.items():
        rows = [
            {"step": step, "seconds": 10 + step / 10, "face": error, "whole": 2 * error}
            | {"features": error, "behind": error}
            for step, error in zip((0, 100, 1000), errors, strict=True)
        ]
        write_rows(tmp_path / str(run) / SURFACE, run, rows)
    row = {"set": "FREE", "step": 500, "seconds": 9.0, "psnr_db": 27.125, "ssim": 0.9}
    write_rows(tmp_path / "good-0" / AVATAR, Run("good", 0), [row])
    priors = {"prior": ["good"], "face": [0.3], "whole": [0.4], "features": [0.3], "behind": [0.5]}
    pd.DataFrame(priors).to_csv(tmp_path / "priors.csv", index=False)
    return tmp_path


def test_the_first_row_at_or_below_an_error_counts() -> None:
    run = pd.DataFrame({"step": [0, 100, 1000], "face": [3.0, 1.0, 1.5]})
    found = reach(run, "face", 1.0)
    assert found is not None and found["step"] == 100
    assert reach(run, "face", 0.5) is None


def test_the_report_tells_when_each_prior_reached_what_none_ends_with(folder: Path) -> None:
    report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    # None ends with 1.1 and 0.9: 1.0 on average, which good-0 has at once and good-1 at the end.
    assert "| good prior | face | 1.00 | 2 of 2 | 500 (0–1,000) | 60 (10–110) |" in lines
    assert "| no prior | face | 1.00 | 1 of 2 | 1,000 | 110 |" in lines
    assert "| good prior itself |  |  | 0.30 | 0.30 | 0.50 | 0.40 |" in lines
    assert any(
        line.startswith("| good prior, last | 2 | 1,000 | 0.50 (0.40–0.60)") for line in lines
    )


def test_runs_that_are_not_finished_do_not_hinder_the_report(folder: Path) -> None:
    (folder / "none-1" / SURFACE).unlink()
    report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert "| good prior | FREE | 1 | 500 | 27.12 | 0.9000 |" in lines


def test_the_figure_has_a_line_for_each_prior_and_region(folder: Path) -> None:
    report(folder)
    figure = ElementTree.parse(folder / "report.svg").getroot()
    lines = figure.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * 2
    points = np.array([pair.split(",") for pair in lines[0].attrib["points"].split()], float)
    assert points.shape == (3, 2)
    assert (np.diff(points, axis=0) > 0).all()  # to the right, and down as the error falls


def test_only_the_outermost_points_above_the_floor_are_measured() -> None:
    ball, inner = trimesh.creation.icosphere(4), trimesh.creation.icosphere(3)
    vertices = np.concatenate([ball.vertices, 0.5 * inner.vertices]).astype(np.float32)
    faces = np.concatenate([ball.faces, inner.faces + len(ball.vertices)])
    points = outer_points(Mesh(vertices, faces), floor=-0.5)
    assert points[:, 1].min() > -0.5
    # On the outer ball, up to its facets; its middle is that of what is above the floor.
    assert np.linalg.norm(points, axis=1).min() > 0.99
    assert len(points) > 4000


def test_each_kind_of_prior_changes_only_what_it_is_about() -> None:
    config = read_config(CONFIG)
    settings = {kind: sdf_settings(config, kind, 30) for kind in CHANGES}
    assert settings["template"] == settings["good"]
    assert settings["template"] == config.sdf.model_copy(update={"steps": 30})
    assert not settings["none"].prior.enabled
    alone = settings["equation_17"]
    assert alone.prior.enabled and not alone.prior.start
    assert alone.weights.prior_distance == 0 < alone.weights.mesh


def test_an_unknown_kind_of_prior_is_named() -> None:
    assert str(Run.parse("none:2")) == "none-2"
    with pytest.raises(argparse.ArgumentTypeError, match="perfect is none of template, good"):
        Run.parse("perfect:0")
