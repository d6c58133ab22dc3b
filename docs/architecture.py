"""Draws docs/architecture.svg: the stages with the files between them, the layers of the package.

python -m docs.architecture
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

PICTURE = Path(__file__).with_suffix(".svg")
STAGES = {  # what it writes, its colour, which stages' files it reads
    "capture": ("frames, cameras, masks", "#4c78a8", ()),
    "face": ("landmarks, tracking", "#d9730d", ("capture",)),
    "prior": ("aligned head mesh", "#45883d", ("capture", "face")),
    "sdf": ("surface, networks", "#96598a", ("capture", "face", "prior")),
    "splat": ("avatar", "#c93c3d", ("capture", "face", "sdf")),
    "tables": ("metrics, report", "#5a5a5a", ("capture", "face", "prior", "sdf", "splat")),
}
WIDTH, LEFT, TOP = 1000, 20, 50
BOX, STEP = (146, 52), (163, 74)  # of the stages
LAYERS_TOP, ROW, GAP = 512, 34, 6
CHIP, CHIPS = (124, 26), 6  # of a unit; in a row


def text(x: float, y: float, words: str, size: int, colour: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" {style}>{words}</text>'


def box(x: float, y: float, size: tuple[int, int], fill: str, line: str = "none") -> str:
    width, height = size
    place = f'x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="5"'
    return f'<rect {place} fill="{fill}" stroke="{line}"/>'


def corner(stage: str) -> tuple[int, int]:
    """Of a stage's box: they go down a stair, in the order of the data."""
    number = list(STAGES).index(stage)
    return LEFT + number * STEP[0], TOP + number * STEP[1]


def draw_stages() -> Iterator[str]:
    yield text(LEFT, 32, "Stages meet in files only", 16, "#222", 'font-weight="bold"')
    for reader, (_, _, sources) in STAGES.items():
        for source in sources:
            (x, y), (left, top), colour = corner(source), corner(reader), STAGES[source][1]
            down = left + 24 + 24 * list(STAGES).index(source)
            line = f"M{x + BOX[0]} {y + BOX[1] // 2}H{down}V{top - 8}"
            yield f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            yield f'<path d="M{down - 4} {top - 9}h8l-4 8z" fill="{colour}"/>'
    for stage, (writes, colour, _) in STAGES.items():
        x, y = corner(stage)
        middle = 'text-anchor="middle"'
        yield box(x, y, BOX, colour)
        yield text(x + BOX[0] / 2, y + 22, stage, 15, "white", f'{middle} font-weight="bold"')
        yield text(x + BOX[0] / 2, y + 40, writes, 11, "white", middle)


def rows_of(units: set[str]) -> int:
    return -(-len(units) // CHIPS)


def draw_layers(layers: Mapping[str, set[str]]) -> Iterator[str]:
    y = LAYERS_TOP
    yield text(LEFT, y, "Imports point down", 16, "#222", 'font-weight="bold"')
    y += 14
    for layer, units in reversed(layers.items()):
        ordered = [stage for stage in STAGES if stage in units] + sorted(units - set(STAGES))
        height = rows_of(units) * ROW + 4
        yield box(LEFT, y, (WIDTH - 2 * LEFT, height), "#f0f0f0")
        yield text(LEFT + 12, y + 23, layer, 12, "#444")
        for number, unit in enumerate(ordered):
            row, column = divmod(number, CHIPS)
            left, top = 180 + column * (CHIP[0] + 8), y + 6 + row * ROW
            stage = unit in STAGES
            fill, line = (STAGES[unit][1], "none") if stage else ("white", "#999")
            yield box(left, top, CHIP, fill, line)
            ink = "white" if stage else "#222"
            yield text(left + CHIP[0] / 2, top + 17, unit, 12, ink, 'text-anchor="middle"')
        y += height + GAP


def draw(layers: Mapping[str, set[str]]) -> str:
    """The picture as SVG; layers from the bottom up, each with its units."""
    rows = sum(rows_of(units) for units in layers.values())
    height = LAYERS_TOP + 20 + rows * ROW + len(layers) * (4 + GAP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="Helvetica, Arial, sans-serif">'
    )
    back = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, back, *draw_stages(), *draw_layers(layers), "</svg>", ""])


if __name__ == "__main__":
    from tests.test_architecture import LAYERS

    PICTURE.write_text(draw(LAYERS))
