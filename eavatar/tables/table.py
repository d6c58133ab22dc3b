"""``metrics.csv`` and ``regions.csv``: means of images by variant and protocol; names, formats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eavatar.errors import UserError
from eavatar.io import atomic, read_table
from eavatar.tables.metrics import DEFINITION
from eavatar.tables.regions import REGIONS


@dataclass(frozen=True)
class Metric:
    """A column of the tables: its name, its label, which direction is better, digits printed."""

    column: str
    label: str
    higher_is_better: bool
    digits: int


MAIN = (
    Metric("psnr_db", "PSNR (dB)", True, 2),
    Metric("ssim", "SSIM", True, 4),
    Metric("lpips", "LPIPS", False, 4),
)
METRICS = (
    *MAIN,
    Metric("ssim_uniform", "SSIM 7×7", True, 4),
    Metric("lpips_alex", "LPIPS alex", False, 4),
    Metric("lpips_vgg", "LPIPS vgg", False, 4),
    Metric("psnr_masked", "PSNR masked (dB)", True, 2),
    Metric("ssim_masked", "SSIM masked", True, 4),
    Metric("psnr_with_set", "PSNR with set (dB)", True, 2),
    Metric("ssim_with_set", "SSIM with set", True, 4),
)
REGIONAL = tuple(Metric(f"psnr_{name}", f"{name} (dB)", True, 2) for name in REGIONS)

KEYS = ["protocol", "sequence", "timestep", "camera"]
GROUP = ["subject", "variant", "protocol", "cameras", "images"]
COLUMNS = [metric.column for metric in (*METRICS, *REGIONAL)]


def metrics(subject: str, images: Mapping[str, Path], output: Path) -> Path:
    """Write ``metrics.csv`` of a subject and beside it ``regions.csv``, and print them.

    A metric is the unweighted mean over all images of a protocol (cameras × timesteps at once);
    that of a region over those in which it is seen. Columns: subject, variant, protocol, cameras,
    images and then `METRICS` (LPIPS is empty where its weights could not be had) or `REGIONAL`.

    Args:
        subject: its name.
        images: tables of images by variant, in the order of the rows.
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
    print(DEFINITION)
    for path, chosen in ((output, METRICS), (output.with_name("regions.csv"), REGIONAL)):
        write_table(path, means[[*GROUP, *(metric.column for metric in chosen)]])
        print(format_metrics(means, chosen))
    return output


def _average(images: Path) -> list[dict[str, Any]]:
    """The rows of one ``images.csv``, one for each protocol."""
    table = read_table(images, "the table of images", ["camera"])
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


def format_metrics(means: pd.DataFrame, chosen: Sequence[Metric] = METRICS) -> str:
    """Rows of ``metrics.csv`` or ``regions.csv`` as aligned text, each metric with its precision.

    A metric that has no value in any row is left out, unless it is one of `MAIN`.
    """
    text: str = format_columns(means, GROUP, chosen).to_string(index=False)
    return text


def format_columns(
    means: pd.DataFrame, keys: Sequence[str], chosen: Sequence[Metric]
) -> pd.DataFrame:
    """Some columns as they are, and metrics as text under their labels, as of `format_metrics`."""
    shown = means[list(keys)].copy()
    for metric in chosen:
        if metric in MAIN or means[metric.column].notna().any():
            arrow = "↑" if metric.higher_is_better else "↓"
            values = [format_value(value, metric.digits) for value in means[metric.column]]
            shown[f"{metric.label} {arrow}"] = values
    return shown


def format_value(value: float, digits: int) -> str:
    """A metric with fixed digits; a dash where there is none, ∞ where the images are equal."""
    if pd.isna(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"
