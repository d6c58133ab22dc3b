"""Flags of timesteps from distances whose verdict is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eavatar.face.quality import measure_quality, write_quality


def test_every_reason_is_flagged(tmp_path: Path) -> None:
    distance = np.ones((5, 6, 68))
    seen = np.ones((5, 6, 68), dtype=bool)
    distance[1] = 3.0  # within the gate, three times the typical residual
    distance[2, :4] = 100.0  # four of six cameras see something else
    seen[3] = False
    distance[4, :, :20] = 100.0  # outliers in every camera, but most agree
    quality = measure_quality(distance, seen, gate=5.0)
    assert quality.cameras.tolist() == [6, 6, 2, 0, 6]
    write_quality(tmp_path / "quality.csv", {"EXP-1": quality})
    table = pd.read_csv(tmp_path / "quality.csv")
    columns = ["sequence", "timestep", "cameras", "reprojection_px", "flag"]
    assert table.columns.tolist() == columns
    flags = ["ok", "large residual", "few cameras", "interpolated", "ok"]
    assert table["flag"].tolist() == flags
    assert table["timestep"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(table["reprojection_px"], [1, 3, 1, np.nan, 1])


def test_a_camera_that_shows_few_landmarks_does_not_support_a_fit() -> None:
    seen = np.zeros((1, 1, 68), dtype=bool)
    seen[..., :16] = True
    assert measure_quality(np.zeros((1, 1, 68)), seen, gate=5.0).cameras.tolist() == [0]
    seen[..., :17] = True
    assert measure_quality(np.zeros((1, 1, 68)), seen, gate=5.0).cameras.tolist() == [1]


def test_a_subject_without_any_residual(tmp_path: Path) -> None:
    quality = measure_quality(np.zeros((2, 3, 68)), np.zeros((2, 3, 68), dtype=bool), gate=5.0)
    write_quality(tmp_path / "quality.csv", {"EXP-1": quality})
    assert set(pd.read_csv(tmp_path / "quality.csv")["flag"]) == {"interpolated"}
