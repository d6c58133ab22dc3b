"""Shaded images of meshes, drawn without a GPU.

Images are RGB, 8 bits, (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from eavatar.io import Mesh

Byte = NDArray[np.uint8]
Array = NDArray[np.floating]
Colour = tuple[int, int, int]

FRACTION_BITS = 4  # sub-pixel digits of OpenCV's polygon corners
SUPERSAMPLING = 2
AMBIENT = 0.35


def draw_meshes(
    meshes: Sequence[tuple[Mesh, Colour | Array]], angle: float, size: int, half_height: float
) -> Byte:
    """Meshes in canonical space, shaded, drawn together by depth; RGB (size, size, 3) on white.

    Orthographic painter's algorithm, light from the viewer: enough for images of heads, where
    faces are small. Where two surfaces cross, their colours interlock.

    Args:
        meshes: each with its RGB colour, or those of its faces (F, 3).
        angle: degrees around the vertical axis; 0 shows the face, 90 its left side.
        size: side of the image, pixels.
        half_height: canonical units from the centre of the image to its border.
    """
    side = size * SUPERSAMPLING
    turn = np.radians(angle)
    axes = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    corners, shades = [], []
    for mesh, colour in meshes:
        triangles = (mesh.vertices @ axes.T)[mesh.faces]
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        facing = np.abs(normals[:, 2]) / np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
        corners.append(triangles)
        shades.append((AMBIENT + (1 - AMBIENT) * facing)[:, None] * np.asarray(colour))
    points, colours = np.concatenate(corners), np.concatenate(shades)
    pixels = (points[..., :2] * [1, -1] / half_height + 1) / 2 * side
    fixed = (pixels * 2**FRACTION_BITS).round().astype(np.int32)
    canvas = np.full((side, side, 3), 255, dtype=np.uint8)
    for index in np.argsort(points[..., 2].mean(axis=1)):
        cv2.fillConvexPoly(canvas, fixed[index], colours[index].tolist(), shift=FRACTION_BITS)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8)


def contact_sheet(images: Sequence[Byte], columns: int) -> Byte:
    """Equal images in rows of some columns, with thin white gaps."""
    height, width = images[0].shape[:2]
    gap = 4
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
