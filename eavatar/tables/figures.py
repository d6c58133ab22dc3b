"""The paper's figures: truth and variants side by side, at the same timestep, camera and crop.

What is shown follows from the expression's strength alone. Images are RGB, 8 bits, (H, W, 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eavatar.arrays import Float64, Image
from eavatar.data.images import read_rgb
from eavatar.errors import UserError
from eavatar.io import Tracking, read_cameras, read_mesh, read_tracking
from eavatar.landmark_indices import BROWS, EYES, MOUTH
from eavatar.rendering.mesh_images import draw_meshes
from eavatar.tables.drawing import write_image
from eavatar.tables.layout import FigureLayout

TILE = 320  # width of a column, pixels
GAP = 4
HEADER = 28  # height of the labels, pixels
ANGLES = (0, 60)  # degrees, of surfaces
SURFACE = (205, 200, 190)
HALF_HEIGHT = 1.7  # canonical units: a head with neck
HALF_WIDTH = 1.4
REGIONS = {"mouth": MOUTH, "eyes": EYES, "brows": BROWS}
MARGIN = 0.2  # around the landmarks, of their width
STEM = re.compile(r"(.+)_(\d{5})_(.+)")  # of a picture: sequence, timestep, camera
MIN_ASPECT = 0.5  # height of a crop / its width: brows are flat


@dataclass(frozen=True)
class Picture:
    """A picture of ``tables/<variant>/pictures``.

    Attributes:
        sequence: its name.
        timestep: index in the sequence.
        camera: serial number.
    """

    sequence: str
    timestep: int
    camera: str

    @classmethod
    def of(cls, path: Path) -> Picture:
        """Of a file with the `name`; sequence and camera may have underscores, too."""
        found = STEM.fullmatch(path.stem)
        if found is None:
            raise UserError(f"{path} is no picture of `evaluate`; run it again.")
        sequence, timestep, camera = found.groups()
        return cls(sequence, int(timestep), camera)

    @property
    def name(self) -> str:
        return f"{self.sequence}_{self.timestep:05d}_{self.camera}.png"


def paper_figure(
    layout: FigureLayout, sources: Sequence[Path], cameras: Path, tracking: Path, output: Path
) -> Path:
    """Draw a figure of a subject.

    Args:
        layout: of the figure.
        sources: of its variants, in their order: ``tables/<variant>/pictures`` or, of surfaces,
            ``sdf/<variant>/surfaces``.
        cameras: ``capture/cameras.json``.
        tracking: ``face/tracking``.
        output: an image file.
    Returns:
        ``output``.
    Raises:
        UserError: a file is missing or malformed, or the variants have no picture, or no step of a
            surface, in common.
    """
    named = dict(zip(layout.variants, sources, strict=True))
    if layout.surfaces:
        rows = _surface_rows(list(named.values()))
    else:
        rows = _picture_rows(layout, named, cameras, tracking)
    write_image(output, assemble([column.label for column in layout.columns], rows))
    return output


def _surface_rows(folders: Sequence[Path]) -> list[list[Image]]:
    """A row for each step whose surface all have."""
    common = set.intersection(*({path.name for path in f.glob("*.ply")} for f in folders))
    if not common:
        raise UserError(
            f"{', '.join(map(str, folders))} have no step in common; run `train_sdf` again."
        )
    return [
        [_draw_surface(folder / name, f"step {int(Path(name).stem)}") for folder in folders]
        for name in sorted(common)
    ]


def _draw_surface(path: Path, label: str) -> Image:
    """A surface from some sides, side by side, at the width of a column."""
    mesh, half = read_mesh(path), round(TILE * HALF_WIDTH / HALF_HEIGHT / 2)
    views = [draw_meshes([(mesh, SURFACE)], angle, TILE, HALF_HEIGHT) for angle in ANGLES]
    tile = to_tile(np.hstack([view[:, TILE // 2 - half : TILE // 2 + half] for view in views]))
    return write_label(tile, label, (GAP, HEADER - 9))


def _picture_rows(
    layout: FigureLayout, folders: Mapping[str, Path], cameras: Path, tracking: Path
) -> list[list[Image]]:
    """A row for each crop of each picture that is shown."""
    common = set.intersection(*({p.name for p in f.glob("*.png")} for f in folders.values()))
    if not common:
        raise UserError(
            f"the pictures of {', '.join(folders)} have no view in common; evaluate these variants "
            "with the same cameras and the same tables.evaluate.pictures."
        )
    pictures = [Picture.of(Path(name)) for name in sorted(common)]
    names = {picture.sequence for picture in pictures}
    tracks = {name: read_tracking(tracking / f"{name}.npz") for name in names}
    known = read_cameras(cameras)
    rows = []
    for picture in strongest(pictures, tracks)[: layout.views]:
        images = _read_columns(layout, folders, picture)
        side = len(images[0])
        points, _ = (
            known[picture.camera]
            .resize(side, side)
            .project(tracks[picture.sequence].landmarks[picture.timestep].astype(np.float64))
        )
        for crop in layout.crops:
            window = find_window(points, crop, side)
            rows.append([to_tile(image[window]) for image in images])
    return rows


def _read_columns(
    layout: FigureLayout, folders: Mapping[str, Path], picture: Picture
) -> list[Image]:
    """The truth or a variant's render for each column, square."""
    strips = {name: read_rgb(folder / picture.name, "evaluate") for name, folder in folders.items()}
    truth = next(iter(strips.values()))
    side = len(truth)
    return [
        strips[column.variant][:, side : 2 * side] if column.variant else truth[:, :side]
        for column in layout.columns
    ]


def strongest(pictures: Sequence[Picture], tracks: Mapping[str, Tracking]) -> list[Picture]:
    """The pictures, those of the largest norm of expression coefficients first."""

    def strength(picture: Picture) -> float:
        return float(np.linalg.norm(tracks[picture.sequence].expression[picture.timestep]))

    return sorted(pictures, key=strength, reverse=True)


def find_window(points: Float64, crop: str, side: int) -> tuple[slice, slice]:
    """Rows and columns of a crop around the landmarks of a region, within the image.

    Args:
        points: (68, 2) pixels.
        crop: a key of `REGIONS`, or ``whole``.
        side: of the image, pixels.
    """
    if crop == "whole":
        return slice(0, side), slice(0, side)
    region = points[REGIONS[crop]]
    low, high = region.min(axis=0), region.max(axis=0)
    size = high - low + 2 * MARGIN * (high - low)[0]
    size[1] = max(size[1], MIN_ASPECT * size[0])
    size = size.clip(8, side)
    start = ((low + high - size) / 2).clip(0, side - size).round().astype(int)
    stop = np.minimum(start + size.round().astype(int), side)
    return slice(start[1], stop[1]), slice(start[0], stop[0])


def to_tile(image: Image, width: int = TILE) -> Image:
    """The image at a width, that of a column if not given."""
    height = round(image.shape[0] * width / image.shape[1])
    shrinks = image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method).astype(np.uint8)


def assemble(labels: Sequence[str], rows: Sequence[Sequence[Image]]) -> Image:
    """Rows of tiles, each of one height, with white gaps, under the columns' labels."""
    width = len(labels) * (TILE + GAP) - GAP
    header = np.full((HEADER, width, 3), 255, np.uint8)
    for column, label in enumerate(labels):
        corner = (column * (TILE + GAP) + GAP, HEADER - 9)
        write_label(header, label, corner)
    parts = [header]
    for row in rows:
        strip = np.full((row[0].shape[0] + GAP, width, 3), 255, np.uint8)
        for column, tile in enumerate(row):
            left = column * (TILE + GAP)
            strip[: tile.shape[0], left : left + TILE] = tile
        parts.append(strip)
    return np.concatenate(parts)


def write_label(image: Image, text: str, corner: tuple[int, int]) -> Image:
    """Black text on an image, its lower left corner at (x, y) pixels."""
    cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return image
