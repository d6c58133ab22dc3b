"""``overview.html``: all subjects and variants on one page, from their tables of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from eavatar.data.images import read_rgb
from eavatar.errors import UserError
from eavatar.io import Failure, atomic, read_table, read_tracking
from eavatar.provenance import NAME, read_record
from eavatar.tables.drawing import shrink
from eavatar.tables.figures import Picture, strongest
from eavatar.tables.layout import AVERAGE
from eavatar.tables.metrics import DEFINITION
from eavatar.tables.page import figure, grid, inline_image, page, section, table
from eavatar.tables.table import METRICS, REGIONAL, Metric, format_columns

STRIP_HEIGHT = 256  # pixels
KEYS = ["subject", "variant", "protocol"]


def overview(shown: Mapping[Path, str], output: Path, failures: Sequence[Failure] = ()) -> Path:
    """Write the page; it links to the subjects' own, and needs no network and no script.

    Args:
        shown: ``results/<subject>``, complete up to ``report.html``, of each subject, and the
            variant of which an image is shown.
        output: ``results/overview.html``.
        failures: of the subjects that are not complete.
    Returns:
        ``output``.
    Raises:
        UserError: a file is missing or malformed.
    """
    body = ["<h1>EAvatar</h1>", *_failed(failures), *(_finished(shown, output) if shown else ())]
    with atomic(output) as temporary:
        temporary.write_text(page("EAvatar: all subjects", body), encoding="utf-8")
    return output


def _finished(shown: Mapping[Path, str], output: Path) -> list[str]:
    """Metrics and images of the subjects that are complete."""
    metrics, regions = (
        pd.concat([_read(results / name) for results in shown])
        for name in ("metrics.csv", "regions.csv")
    )
    text = (
        f"Subjects: {len(shown)}. Variants, the floors among them: {metrics['variant'].nunique()}. "
        "A variant's average is over the subjects that have it, each a mean over images."
    )
    return [
        f'<p class="soft">{escape(text)}</p>',
        section("Metrics", DEFINITION, *_tables(metrics, METRICS)),
        section("Regions", "PSNR of parts of the head.", *_tables(regions, REGIONAL)),
        section(
            "Subjects",
            "Truth, render and error of the picture of strongest expression. The name leads to "
            "the subject's page.",
            grid([_show(results, variant, output) for results, variant in shown.items()]),
        ),
    ]


def _failed(failures: Sequence[Failure]) -> list[str]:
    """What has failed, and where its log is."""
    if not failures:
        return []
    rows = pd.DataFrame([asdict(failure) for failure in failures])
    return [section("Failed", "Jobs of the last run; run it again after a mend.", table(rows))]


def _read(path: Path) -> pd.DataFrame:
    return read_table(path, "the table of metrics", KEYS)


def _tables(means: pd.DataFrame, chosen: Sequence[Metric]) -> list[str]:
    """The averages over subjects, if there are several, then each subject's rows."""
    columns = [metric.column for metric in chosen]
    parts = {str(name): rows for name, rows in means.groupby("subject", sort=False)}
    if len(parts) > 1:
        average = means.groupby(KEYS[1:], sort=False)[columns].mean().reset_index()
        parts = {AVERAGE: average, **parts}
    return [
        f"<p><b>{escape(name)}</b></p>{table(format_columns(rows, KEYS[1:], chosen))}"
        for name, rows in parts.items()
    ]


def _show(results: Path, variant: str, output: Path) -> str:
    """A subject's image of strongest expression, and the way to its page."""
    folder = results / "tables" / variant / "pictures"
    pictures = [Picture.of(path) for path in sorted(folder.glob("*.png"))]
    if not pictures:
        raise UserError(f"{folder} holds no picture; run `evaluate` again.")
    names = {picture.sequence for picture in pictures}
    tracks = {name: read_tracking(results / "face/tracking" / f"{name}.npz") for name in names}
    chosen = strongest(pictures, tracks)[0]
    strip = shrink(read_rgb(folder / chosen.name, "evaluate"), STRIP_HEIGHT)
    caption = f"{variant}: {chosen.sequence}, timestep {chosen.timestep}, camera {chosen.camera}"
    link = quote((results / "report.html").relative_to(output.parent).as_posix())
    made = escape(read_record(results / f"metrics.{NAME}").summary())
    heading = (
        f'<p><a href="{link}">{escape(results.name)}</a><br><span class="soft">{made}</span></p>'
    )
    return f"<div>{heading}{figure(inline_image(strip, results.name), caption)}</div>"
