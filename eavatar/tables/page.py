"""The building blocks of the report page: HTML and SVG text without any outside reference."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eavatar.data.video import shrink_video
from eavatar.rendering.mesh_images import Byte

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --line: #d9dee3; --paper: #fff;
  --card: #f5f7f9; --accent: #2a6f97; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa4ae; --line: #353d45;
  --paper: #14181c; --card: #1d2328; --accent: #7fc0e6; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; } .soft, figcaption { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .6rem 1.1rem; min-width: 8rem; }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
a { color: var(--accent); }
.scroll { overflow-x: auto; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0;
  background: var(--paper); }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; margin-top: .35rem; max-width: 46rem; }
img, video { max-width: 100%; height: auto; border-radius: .4rem; display: block; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: .75rem; }
.grid figure { margin: 0; }
.small figure { background: var(--card); border-radius: .5rem; padding: .6rem; }
@media (max-width: 34rem) { .grid { grid-template-columns: 1fr; } table { font-size: .85rem; } }
svg { display: block; max-width: 100%; height: auto; } svg text { fill: currentColor; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem;
  overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; color: var(--accent); margin: .4rem 0; }
"""

PLOT_WIDTH, PLOT_HEIGHT = 200, 110
MAX_POINTS = 400  # of a curve; more cannot be seen


def page(title: str, body: Sequence[str]) -> str:
    """A complete HTML document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def section(title: str, text: str, *parts: str) -> str:
    """A heading, a paragraph that says what one sees, and content."""
    return f"<h2>{escape(title)}</h2><p>{escape(text)}</p>{''.join(parts)}"


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def inline_image(image: Byte, description: str) -> str:
    """An RGB image as text of the page, JPEG."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    text = base64.b64encode(data.tobytes()).decode()
    size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
    return f'<img {size} alt="{escape(description)}" src="data:image/jpeg;base64,{text}">'


def inline_video(path: Path, description: str, height: int) -> str:
    """An MP4 file as part of the page, its images at most so high, an even number of pixels."""
    text = base64.b64encode(shrink_video(path, height)).decode()
    return (
        f'<video controls loop muted playsinline aria-label="{escape(description)}" '
        f'src="data:video/mp4;base64,{text}"></video>'
    )


def grid(parts: Sequence[str], small: bool = False) -> str:
    return f'<div class="grid{" small" if small else ""}">{"".join(parts)}</div>'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with its label."""
    cells = (f'<div class="tile"><b>{escape(v)}</b>{escape(label)}</div>' for v, label in values)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(rows: pd.DataFrame) -> str:
    """A table of text cells; the first column to the left."""
    names = (re.sub(" ([↑↓])", "\N{NO-BREAK SPACE}\\1", str(name)) for name in rows.columns)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in rows.itertuples(index=False)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def details(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def curve(name: str, steps: NDArray[np.float64], values: NDArray[np.float64]) -> str:
    """A small line plot of one logged value: every value faint, a running median strong."""
    stride = max(1, len(steps) // MAX_POINTS)
    window = max(1, len(values) // 25)
    median = pd.Series(values).rolling(window, center=True, min_periods=1).median().to_numpy()
    low, high = float(values.min()), float(values.max())
    span, length = (high - low) or 1.0, float(steps[-1] - steps[0]) or 1.0
    across = (steps - steps[0]) / length * PLOT_WIDTH

    def line(heights: NDArray[np.float64], opacity: float) -> str:
        down = PLOT_HEIGHT * (1 - (heights - low) / span)
        points = zip(across[::stride], down[::stride], strict=True)
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{text}" fill="none" stroke="var(--accent)" opacity="{opacity}"/>'

    frame = f'<path d="M0 0V{PLOT_HEIGHT}H{PLOT_WIDTH}" fill="none" stroke="var(--line)"/>'
    labels = (
        f'<text x="-4" y="8" text-anchor="end">{_short(high)}</text>'
        f'<text x="-4" y="{PLOT_HEIGHT}" text-anchor="end">{_short(low)}</text>'
        f'<text x="{PLOT_WIDTH}" y="{PLOT_HEIGHT + 13}" text-anchor="end">'
        f"step {int(steps[-1])}</text>"
    )
    drawing = (
        f'<svg viewBox="-52 -4 {PLOT_WIDTH + 54} {PLOT_HEIGHT + 20}" width="{PLOT_WIDTH + 54}" '
        f'font-size="10" role="img" aria-label="{escape(name)}">{frame}'
        f"{line(values, 0.3)}{line(median, 1)}{labels}</svg>"
    )
    return figure(drawing, f"{name}: {_short(values[-1])} at the end")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


COLUMN_WIDTH, COLUMN_GAP, BOXES_TOP, BOX_HEIGHT, BOX_GAP = 142, 30, 34, 28, 14
GRAPH_LETTERS = 12  # size of the font, pixels
ARROW = 'fill="none" stroke="var(--soft)" marker-end="url(#tip)"'


def stage_graph(
    stages: Sequence[tuple[str, Sequence[str]]], shortcuts: Sequence[tuple[str, str]]
) -> str:
    """The pipeline as SVG: a column per stage with its rules in order; arcs for files used later.

    Args:
        stages: name and rules, in the order of the data flow; each feeds the next.
        shortcuts: pairs of stages that are not neighbours, from producer to user.
    """
    step = COLUMN_WIDTH + COLUMN_GAP
    bottom = BOXES_TOP + max(len(rules) for _, rules in stages) * (BOX_HEIGHT + BOX_GAP)
    parts = [
        _stage_column(stage, rules, column * step, bottom)
        for column, (stage, rules) in enumerate(stages)
    ]
    level = BOXES_TOP + BOX_HEIGHT / 2
    parts += [
        f'<path d="M{column * step - COLUMN_GAP} {level}h{COLUMN_GAP - 3}" {ARROW}/>'
        for column in range(1, len(stages))
    ]
    columns = {stage: column for column, (stage, _) in enumerate(stages)}
    for producer, user in shortcuts:
        start, end = (columns[stage] * step + COLUMN_WIDTH / 2 for stage in (producer, user))
        dip = bottom + 14 + 13 * (columns[user] - columns[producer])
        parts.append(
            f'<path d="M{start + 10} {bottom}C{start + 30} {dip} {end - 30} {dip} '
            f'{end - 10} {bottom + 2}" {ARROW} opacity=".6"/>'
        )
    width, height = len(stages) * step - COLUMN_GAP, bottom + 80
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="var(--soft)"/></marker></defs>'
    )
    return (
        f'<svg viewBox="-2 -2 {width + 4} {height}" width="{width}" font-size="{GRAPH_LETTERS}" '
        f'role="img" aria-label="the rules of the pipeline">{tip}{"".join(parts)}</svg>'
    )


def _stage_column(stage: str, rules: Sequence[str], left: float, height: float) -> str:
    middle = left + COLUMN_WIDTH / 2
    parts = [
        f'<rect x="{left}" y="0" width="{COLUMN_WIDTH}" height="{height}" rx="8" '
        f'fill="var(--card)"/><text x="{middle}" y="20" text-anchor="middle" '
        f'font-weight="600">{stage}</text>'
    ]
    for row, rule in enumerate(rules):
        top = BOXES_TOP + row * (BOX_HEIGHT + BOX_GAP)
        parts.append(
            f'<rect x="{left + 3}" y="{top}" width="{COLUMN_WIDTH - 6}" height="{BOX_HEIGHT}" '
            f'rx="5" fill="var(--paper)" stroke="var(--line)"/>'
            f'<text x="{middle}" y="{top + 18}" text-anchor="middle">{rule}</text>'
        )
        if row:
            parts.append(f'<path d="M{middle} {top - BOX_GAP}v{BOX_GAP - 2}" {ARROW}/>')
    return "".join(parts)
