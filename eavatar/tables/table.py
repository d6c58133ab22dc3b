"""``metrics.csv``: the means of ``images.csv`` by variant and protocol; names and formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eavatar.errors import UserError
from eavatar.io import atomic, require


@dataclass(frozen=True)
class Metric:
    """A column of the tables: its name, its label, which direction is better, digits printed."""

    column: str
    label: str
    higher_is_better: bool
    digits: int


METRICS = (
    Metric("psnr_db", "PSNR (dB)", True, 2),
    Metric("ssim", "SSIM", True, 4),
    Metric("lpips", "LPIPS", False, 4),
)

COLUMNS = [metric.column for metric in METRICS]


def metrics(subject: str, images: Mapping[str, Path], output: Path) -> Path:
    """Write ``metrics.csv`` of a subject, and print it.

    A metric is the unweighted mean over all images of a protocol (cameras × timesteps at once).
    Columns: subject, variant, protocol, cameras, images, psnr_db, ssim, lpips (empty where LPIPS'
    weights could not be had).

    Args:
        subject: its name.
        images: ``images.csv`` by variant, in the order of the rows.
        output: ``metrics.csv``.
    Raises:
        UserError: a table is missing, lacks a column or holds no row.
    """
    means = pd.DataFrame(
        [
            {"subject": subject, "variant": variant, **row}
            for variant, path in images.items()
            for row in _average(path)
        ]
    )
    write_table(output, means)
    print(format_metrics(means))
    return output


def _average(images: Path) -> list[dict[str, Any]]:
    """The rows of one ``images.csv``, one for each protocol."""
    table = pd.read_csv(require(images, "the table of images"), dtype={"camera": str})
    missing = [name for name in ("protocol", "camera", *COLUMNS) if name not in table]
    if missing or table.empty:
        fault = f"lacks the column '{missing[0]}'" if missing else "holds no row"
        raise UserError(f"{images} {fault}; run `evaluate` again.")
    return [
        {
            "protocol": protocol,
            "cameras": group["camera"].nunique(),
            "images": len(group),
            **group[COLUMNS].mean().to_dict(),
        }
        for protocol, group in table.groupby("protocol", sort=False)
    ]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a ``.csv``, numbers with six digits behind the point."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")


def format_metrics(means: pd.DataFrame) -> str:
    """The rows of ``metrics.csv`` as aligned text, each metric with its own precision."""
    shown = means.copy()
    for metric in METRICS:
        shown[metric.column] = [format_value(x, metric.digits) for x in means[metric.column]]
    labels = {metric.column: metric.label for metric in METRICS}
    text: str = shown.rename(columns=labels).to_string(index=False)
    return text


def format_value(value: float, digits: int) -> str:
    """A metric with fixed digits; a dash where there is none, ∞ where the images are equal."""
    if pd.isna(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"
