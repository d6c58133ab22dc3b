"""The paper's tables as Markdown and LaTeX, from their long form (`eavatar.tables.paper`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eavatar.io import atomic
from eavatar.tables.layout import AVERAGE, SPEED, Layout
from eavatar.tables.metrics import DEFINITION
from eavatar.tables.table import METRICS, Metric, format_value

SOURCE = (
    "Published: EAvatar, arXiv:2508.13537v1, average over its cases. It names no subjects, so that "
    "a difference is also one between people."
)
SPEED_DEFINITION = (
    "Training: both stages, by Snakemake's benchmarks; of a training that was resumed, since then. "
    "Steps per second: of stage II, median over its log, without its start. "
    "Frames per second: from expression, pose and camera to the finished image on the device, "
    "median, without copying and encoding it."
)
SPEEDS = (
    Metric(SPEED[0], "training (h)", False, 3),
    Metric(SPEED[1], "steps per second", True, 1),
    Metric(SPEED[2], "frames per second", True, 2),
)
DELTA = "difference"
DEVIATIONS = {"measured": "deviation", "gain": "gain_deviation"}
NOTHING = format_value(float("nan"), 0)
BY_COLUMN = {metric.column: metric for metric in (*METRICS, *SPEEDS)}
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
ESCAPED = str.maketrans({**SPECIAL, "τ": r"$\tau$", "σ": r"$\sigma$", "±": r"$\pm$", "–": "--"})


@dataclass(frozen=True)
class Grid:
    """Cells of text.

    Attributes:
        caption: what it shows.
        header: names of the columns.
        rows: cells.
        above: rows above the line; the others are floors.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    above: int


def write_documents(
    output: Path, name: str, layout: Layout, table: pd.DataFrame, hardware: Sequence[str]
) -> str:
    """Write ``<name>.md`` and ``<name>.tex``; returns the former's text.

    Args:
        output: folder.
        name: of the table.
        layout: of the table.
        table: of `eavatar.tables.paper.join`.
        hardware: that speed was measured on.
    """
    grids = make_grids(layout, table)
    notes = [SPEED_DEFINITION if layout.speed else DEFINITION, *_describe(layout, table, hardware)]
    title = f"{name[0].upper()}{name[1:-1]} {name[-1]}: {layout.title}"
    texts = {
        ".md": f"# {title}\n\n{notes[0]}\n\n"
        + "\n".join(map(to_markdown, grids))
        + "\n"
        + "".join(f"{note}\n\n" for note in notes[1:]).rstrip("\n")
        + "\n",
        ".tex": "\n".join([f"% {title}", *(f"% {note}" for note in notes), *map(to_tex, grids)]),
    }
    for suffix, text in texts.items():
        with atomic(output / f"{name}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return texts[".md"]


def make_grids(layout: Layout, table: pd.DataFrame) -> list[Grid]:
    """The average beside the published one; if there are several, subjects and published cases."""
    measured, published = "measured", "published"
    names = [name for name in table["subject"].unique() if name != AVERAGE]
    grids = [
        _make_grid("Average over subjects", layout, table, [AVERAGE], (measured, published, DELTA))
    ]
    if layout.reference:
        caption = f"Gain over {layout.reference}, seed by seed"
        grids.append(_make_grid(caption, layout, table, [AVERAGE], ("gain", "published_gain")))
    for column, caption in {measured: "By subject", published: "Published, by case"}.items():
        some = [name for name in names if table[table["subject"] == name][column].notna().any()]
        if len(some) > 1:
            grids.append(_make_grid(caption, layout, table, some, (column,)))
    return grids


def _make_grid(
    caption: str,
    layout: Layout,
    table: pd.DataFrame,
    subjects: Sequence[str],
    columns: Sequence[str],
) -> Grid:
    """Some columns of the long table for each subject and metric; rows without a value left out."""
    cells = table.set_index(["row", "subject", "metric"])
    places = [
        (subject, BY_COLUMN[metric], column)
        for subject in subjects
        for metric in layout.metrics
        for column in columns
    ]
    header = [
        (metric.label if subject == AVERAGE else f"{subject} {metric.label}")
        if column == columns[0]
        else column.partition("_")[0]
        for subject, metric, column in places
    ]
    rows, above = [], 0
    for number, row in enumerate((*layout.rows, *layout.floors)):
        keys = [(row.label, subject, metric.column) for subject, metric, _ in places]
        texts = [
            _format(cells.loc[key], column, metric) if key in cells.index else NOTHING
            for key, (_, metric, column) in zip(keys, places, strict=True)
        ]
        if DELTA in columns or set(texts) != {NOTHING}:
            rows.append([row.label, *texts])
            above += number < len(layout.rows)
    return Grid(caption, ["", *header], rows, above)


def to_markdown(grid: Grid) -> str:
    """A table; floors in italics, as Markdown has no lines between rows."""
    rows = [
        [f"*{row[0]}*" if number >= grid.above else row[0], *row[1:]]
        for number, row in enumerate(grid.rows)
    ]
    lines = [grid.header, ["---", *["---:"] * (len(grid.header) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{grid.caption}:\n\n{table}\n"


def to_tex(grid: Grid) -> str:
    """A ``tabular`` that needs no package, under a comment that says what it shows."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cell.translate(ESCAPED) for cell in cells) + r" \\"

    rows = [line(row) for row in grid.rows]
    floors = [r"\hline", *rows[grid.above :]] if rows[grid.above :] else []
    return "\n".join(
        [
            f"% {grid.caption}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
            r"\hline",
            line(grid.header),
            r"\hline",
            *rows[: grid.above],
            *floors,
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def _format(values: pd.Series, column: str, metric: Metric) -> str:
    """A value, with its deviation if it has one; a difference or gain with its sign."""
    text = format_value(values[column], metric.digits)
    if column not in ("measured", "published") and values[column] > 0:
        text = f"+{text}"
    deviation = values.get(DEVIATIONS.get(column, ""), float("nan"))
    return text if pd.isna(deviation) else f"{text} ± {format_value(deviation, metric.digits)}"


def _describe(layout: Layout, table: pd.DataFrame, hardware: Sequence[str]) -> list[str]:
    """What stands under a table: subjects, seeds, what is missing, and the source."""
    measured = table[table["measured"].notna()]
    names = [name for name in measured["subject"].unique() if name != AVERAGE]
    notes = [f"Subjects: {', '.join(names) or 'none'}."]
    seeds = measured["seeds"].max()
    if seeds > 1:
        notes[0] += f" ± is the standard deviation over {seeds:.0f} seeds."
    if hardware:
        notes.append(f"Measured on: {'; '.join(hardware)}.")
    missing = [name for name in layout.variants if name not in set(measured["variant"])]
    if missing:
        notes.append(
            f"Without a measurement: {', '.join(missing)} (variants of config/variants.yaml)."
        )
    return [*notes, *filter(None, [layout.note]), SOURCE]
