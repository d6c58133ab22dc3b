"""The table and the figure of `benchmarks.prior_gain`, from the tables of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

SURFACE, AVATAR, PRIORS = "surface.csv", "avatar.csv", "priors.csv"
KINDS = {  # of priors: name and colour
    "template": ("template", "#c2410c"),
    "good": ("good prior", "#1d4ed8"),
    "equation_17": ("Eq. 17 alone", "#7c3aed"),
    "none": ("no prior", "#525252"),
}
REGIONS = {"face": "face", "features": "eyes, lips", "behind": "behind", "whole": "whole head"}
WIDTH, HEIGHT = 270, 180  # of a panel, pixels
FIRST = 10  # the step where the figure's axis begins, there for step 0


def report(folder: Path) -> None:
    """Write ``report.md`` and ``report.svg`` of the runs in a folder, and print the former."""
    surfaces, avatars, priors = (
        _read_all(folder, name) for name in (f"*/{SURFACE}", f"*/{AVATAR}", PRIORS)
    )
    lines = [*surface_table(surfaces, priors), "", *reached_table(surfaces)]
    if len(avatars):
        lines += ["", *avatar_table(avatars)]
    text = "\n".join(lines) + "\n"
    (folder / "report.md").write_text(text)
    (folder / "report.svg").write_text(draw(surfaces))
    print(text)


def _read_all(folder: Path, pattern: str) -> pd.DataFrame:
    tables = [pd.read_csv(path) for path in sorted(folder.glob(pattern))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _by_prior(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each kind of prior that there is, and its name, in the order of `KINDS`."""
    for kind, (name, _) in KINDS.items():
        own = table[table["prior"] == kind]
        if len(own):
            yield name, own


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _spread(values: pd.Series, digits: int) -> str:
    """The mean, and the least and greatest of several."""
    mean, low, high = (f"{x:,.{digits}f}" for x in (values.mean(), values.min(), values.max()))
    return mean if low == high else f"{mean} ({low}–{high})"


def ends(surfaces: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run."""
    return surfaces.loc[surfaces.groupby(["prior", "seed"])["step"].idxmax()]


def surface_table(surfaces: pd.DataFrame, priors: pd.DataFrame) -> list[str]:
    """Errors of the priors themselves, of the first surface and of the last one."""
    lines = _head("surface", "seeds", "steps", *(f"{name}, %" for name in REGIONS.values()))
    for name, own in _by_prior(priors):
        lines.append(_row(f"{name} itself", "", "", *(_spread(own[r], 2) for r in REGIONS)))
    for step in ("first", "last"):
        chosen = surfaces[surfaces["step"] == 0] if step == "first" else ends(surfaces)
        for name, own in _by_prior(chosen):
            errors = (_spread(own[region], 2) for region in REGIONS)
            lines.append(_row(f"{name}, {step}", len(own), _spread(own["step"], 0), *errors))
    return lines


def reach(run: pd.DataFrame, region: str, error: float) -> pd.Series | None:
    """The first row of a run's table at which an error is reached, None if there is none."""
    ordered = run.sort_values("step")
    reached = ordered[ordered[region] <= error]
    return reached.iloc[0] if len(reached) else None


def reached_table(surfaces: pd.DataFrame) -> list[str]:
    """Steps and seconds to the mean error that runs without a prior end with."""
    without = ends(surfaces[surfaces["prior"] == "none"])
    lines = _head("prior", "region", "error without, %", "reached by", "steps", "seconds")
    for region in ("face", "whole"):
        error = float(without[region].mean())
        for name, own in _by_prior(surfaces):
            rows = [reach(run, region, error) for _, run in own.groupby("seed")]
            found = pd.DataFrame([row for row in rows if row is not None])
            times = ("step", 0), ("seconds", 0)
            cells = [_spread(found[c], d) if len(found) else "–" for c, d in times]
            counts = f"{len(found)} of {len(rows)}"
            lines.append(_row(name, REGIONS[region], f"{error:.2f}", counts, *cells))
    return lines


def avatar_table(avatars: pd.DataFrame) -> list[str]:
    """PSNR and SSIM of stage II."""
    lines = _head("stage II from", "set", "seeds", "steps", "PSNR, dB", "SSIM")
    for sequence, rows in avatars.groupby("set"):
        for name, own in _by_prior(rows):
            metrics = _spread(own["psnr_db"], 2), _spread(own["ssim"], 4)
            lines.append(_row(name, sequence, len(own), _spread(own["step"], 0), *metrics))
    return lines


def draw(surfaces: pd.DataFrame) -> str:
    """Error over steps as an SVG of two panels: a line for the mean of the seeds, and their range
    behind it."""
    panels = "".join(
        _panel(surfaces, region, 50 + (WIDTH + 70) * column)
        for column, region in enumerate(("face", "whole"))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 250" font-family="sans-serif" '
        f'font-size="11">{panels}</svg>\n'
    )


def _panel(surfaces: pd.DataFrame, region: str, left: int) -> str:
    """One region; the axis of steps is logarithmic, step 0 at its begin."""
    top, last = 30, surfaces["step"].max()
    highest = 1.05 * surfaces[region].max()

    def across(steps: float | pd.Series) -> np.ndarray:
        fraction = np.log(np.maximum(steps, FIRST) / FIRST) / np.log(last / FIRST)
        return np.asarray(left + WIDTH * fraction)

    def down(errors: float | pd.Series) -> np.ndarray:
        return np.asarray(top + HEIGHT * (1 - errors / highest))

    parts = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{left}" y="{top - 8}">{REGIONS[region]}: error, % of head size</text>',
        f'<text x="{left}" y="{top + HEIGHT + 15}" text-anchor="middle">0</text>',
        f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 30}" text-anchor="middle">steps</text>',
    ]
    for step in (step for step in (100, 1000, 10000) if step <= last):
        x = across(step)
        parts.append(
            f'<path d="M{x:.1f} {top}v{HEIGHT}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{top + HEIGHT + 15}" text-anchor="middle">{step:,}</text>'
        )
    for error in np.arange(0, highest, 0.5 if highest < 4 else 1):
        y = down(error)
        parts.append(
            f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{error:g}</text>'
        )
    for index, (name, own) in enumerate(_by_prior(surfaces)):
        colour = KINDS[own["prior"].iloc[0]][1]
        by_step = own.groupby("step")[region]
        low, mean, high = by_step.min(), by_step.mean(), by_step.max()
        x = across(mean.index.to_series())
        there, back = (_points(x, down(part)) for part in (low, high))
        parts.append(
            f'<polygon points="{" ".join(there + back[::-1])}" fill="{colour}" opacity="0.15"/>'
            f'<polyline points="{" ".join(_points(x, down(mean)))}" fill="none" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left + WIDTH - 6}" y="{top + 16 + 14 * index}" text-anchor="end" '
            f'fill="{colour}">{name}</text>'
        )
    return "".join(parts)


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]
