"""The demo family of heads: one topology, a mesh per head, and its look.

Model frame: that of `eavatar.demo.sculpt`, in metres: y up, the face towards +z, +x the
subject's left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eavatar.arrays import Float32, Float64, Int32, Int64
from eavatar.demo.controls import (
    CONTROLS,
    head_weight,
    jaw_displacements,
    lip_closure,
    random_shape,
    skin_displacements,
    warp_to_head,
)
from eavatar.demo.look import eye_look, hair_look, shirt_look, skin_look, teeth_look, tongue_look
from eavatar.demo.sculpt import (
    EYE,
    EYE_RADIUS,
    HAIR,
    MOUTH_Y,
    SHIRT,
    SKIN,
    SculptSurface,
    axis,
    distances,
    extract_surface,
)
from eavatar.meshes import vertex_normals

METRES = 0.1  # per decimetre
UNDER_HAIR = -0.04  # skin this deep under the hair's surface is not drawn, decimetres

SKIN_AXES = (
    axis((-1.05, 0.03), (-0.66, 0.021), (0.66, 0.035), (1.05, 0)),
    axis((-1.29, 0.05), (-0.95, 0.020), (0.66, 0.05), (1.6, 0)),
    axis((-1.15, 0.06), (-0.42, 0.03), (0.35, 0.021), (1.3, 0)),
)
HAIR_AXES = (
    axis((-1.1, 0.03), (1.1, 0)),
    axis((-0.8, 0.03), (1.75, 0)),
    axis((-1.3, 0.03), (1.2, 0)),
)
SHIRT_AXES = (
    axis((-2.2, 0.06), (-0.9, 0.04), (0.9, 0.06), (2.2, 0)),
    axis((-2.5, 0.06), (-1.5, 0.035), (-0.6, 0)),
    axis((-1.3, 0.05), (0.9, 0)),
)


@dataclass(frozen=True)
class HeadPart:
    """One piece of the head, in the sculpt frame.

    Attributes:
        surface: its mesh.
        displacements: (K, V, 3) of the expression controls, or None if it ignores them.
        head: (V,) skinning weight of the head.
        look: (V, A) shading attributes, see `eavatar.demo.look`.
    """

    surface: SculptSurface
    displacements: Float64 | None
    head: Float64
    look: Float32


@dataclass(frozen=True)
class DemoHead:
    """A head of the family with everything that the renderer needs, in metres.

    Attributes:
        neutral: (V, 3) model frame.
        displacements: (K, V, 3) of the expression controls at full strength.
        faces: (F, 3) of everything that can be seen.
        skin_faces: (G, 3) of the skin, also under the hair.
        head: (V,) skinning weight of the head; the rest is the torso's, which does not move.
        look: (V, A) shading attributes.
        eyes: left and right eyeball: slice of the vertices.
        eye_centres: (2, 3).
        skin: number of skin vertices, which come first.
        landmarks: (68,) skin vertices of the iBUG points.
    """

    neutral: Float32
    displacements: Float32
    faces: Int32
    skin_faces: Int32
    head: Float32
    look: Float32
    eyes: tuple[slice, slice]
    eye_centres: Float32
    skin: int
    landmarks: Int64

    def vertices(self, expression: Float32, gaze: tuple[float, float]) -> Float32:
        """(V, 3) at rest pose.

        Args:
            expression: (K,) strengths of the controls.
            gaze: yaw and pitch, radians.
        """
        result = self.neutral + np.tensordot(expression.astype(np.float32), self.displacements, 1)
        yaw, pitch = gaze
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array(
            [[1, 0, 0], [0, cp, sp], [0, -sp, cp]]
        )
        for eye, centre in zip(self.eyes, self.eye_centres, strict=True):
            result[eye] = (result[eye] - centre) @ turn.T.astype(np.float32) + centre
        return result


def _grid_faces(rows: int, columns: int, closed: bool) -> Int32:
    """Triangles of a grid of vertices; ``closed`` joins the last column to the first."""
    row, column = np.mgrid[: rows - 1, : columns - (0 if closed else 1)]
    a = row * columns + column
    b = row * columns + (column + 1) % columns
    quads = np.stack([a, b, b + columns, a + columns], -1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


def _ball(
    centre: tuple[float, ...], radii: tuple[float, ...], rows: int, columns: int
) -> SculptSurface:
    """An ellipsoid with its pole towards +z and rows closer together near it."""
    polar = np.pi * np.linspace(0, 1, rows) ** 1.4
    around = 2 * np.pi * np.arange(columns) / columns
    x = np.sin(polar)[:, None] * np.cos(around)
    y = np.sin(polar)[:, None] * np.sin(around)
    z = np.broadcast_to(np.cos(polar)[:, None], x.shape)
    unit = np.stack([x, y, z], -1).reshape(-1, 3)
    faces = _grid_faces(rows, columns, closed=True)[:, ::-1]
    return SculptSurface((unit * radii + centre).astype(np.float32), np.ascontiguousarray(faces))


def _dental_arch(upper: bool) -> SculptSurface:
    """A row of teeth with gum: a bent ribbon with a rounded section, closed at the biting edge."""
    along = np.linspace(-1, 1, 97)
    # Section from the gum down the front, round the edge and up the back: (depth, height).
    depth = np.array([0.0, 0.018, 0.022, 0.018, 0.0, -0.03, -0.05, -0.05])
    height = np.array([0.0, 0.035, 0.08, 0.115, 0.128, 0.118, 0.06, 0.0])
    tooth = np.abs(np.sin(along * np.pi * 5.0))
    edge = 1.0 - 0.05 * (1 - tooth**0.3)
    x = (0.215 if upper else 0.195) * np.sin(along * np.pi / 2 * 0.92)
    z = 0.66 + (0.265 if upper else 0.235) * np.cos(along * np.pi / 2 * 0.92)
    outward = np.stack([np.sin(along * 1.3), np.cos(along * 1.3)], -1)
    bulge = 0.7 + 0.3 * tooth**0.5
    px = x + outward[:, 0] * depth[:, None] * bulge
    pz = z + outward[:, 1] * depth[:, None] * bulge
    root, direction = (MOUTH_Y + 0.125, -1) if upper else (MOUTH_Y - 0.155, 1)
    py = root + direction * height[:, None] * edge
    faces = _grid_faces(len(depth), len(along), closed=False)
    faces = faces if not upper else faces[:, ::-1]
    vertices = np.stack([px, py, pz], -1).reshape(-1, 3)
    return SculptSurface(vertices.astype(np.float32), np.ascontiguousarray(faces))


def _normals(surface: SculptSurface) -> Float32:
    """(V, 3) unit normals."""
    return vertex_normals(surface.vertices, surface.faces).astype(np.float32)


def _static_part(surface: SculptSurface, look: Float32, head: float) -> HeadPart:
    """A part without expression."""
    return HeadPart(surface, None, np.full(len(surface.vertices), head), look)


def _skin_part(generator: np.random.Generator) -> HeadPart:
    """The skin, which all controls move."""
    surface = extract_surface(SKIN, SKIN_AXES)
    points = surface.vertices.astype(np.float64)
    look = skin_look(points, _normals(surface), generator)
    moves = skin_displacements(points)
    return HeadPart(surface, moves, head_weight(points), look)


def _jaw_part(surface: SculptSurface, look: Float32) -> HeadPart:
    """A part that only the controls of the jaw move."""
    points = surface.vertices.astype(np.float64)
    return HeadPart(surface, jaw_displacements(points), np.ones(len(points)), look)


def _build_parts(generator: np.random.Generator) -> list[HeadPart]:
    """Skin, left and right eye, lower and upper teeth, tongue, hair, shirt."""
    eyes = [_ball((side * EYE[0], *EYE[1:]), (EYE_RADIUS,) * 3, 28, 40) for side in (1, -1)]
    lower, upper = _dental_arch(upper=False), _dental_arch(upper=True)
    tongue = _ball((0.0, MOUTH_Y - 0.10, 0.66), (0.16, 0.06, 0.22), 12, 20)
    hair, shirt = extract_surface(HAIR, HAIR_AXES), extract_surface(SHIRT, SHIRT_AXES)
    return [
        _skin_part(generator),
        *(_static_part(eye, eye_look(eye, generator), 1.0) for eye in eyes),
        _jaw_part(lower, teeth_look(lower.vertices, upper=False)),
        _static_part(upper, teeth_look(upper.vertices, upper=True), 1.0),
        _jaw_part(tongue, tongue_look(tongue.vertices)),
        _static_part(hair, hair_look(hair.vertices, _normals(hair)), 1.0),
        _static_part(shirt, shirt_look(shirt.vertices, _normals(shirt)), 0.0),
    ]


def _shape_part(part: HeadPart, shape: Float64, neutral: bool) -> tuple[Float32, Float32]:
    """Neutral vertices (V, 3) and control displacements (K, V, 3) of a part on one head, metres.

    Args:
        part: on the sculpture.
        shape: the head's coefficients, see `random_shape`.
        neutral: close the lips of the sculpture.
    """
    points = part.surface.vertices.astype(np.float64)
    base = points + lip_closure(points) if neutral else points
    start = warp_to_head(base, shape)
    if part.displacements is None:
        moves = np.zeros((len(CONTROLS), *points.shape))
    else:
        moves = np.stack([warp_to_head(base + move, shape) - start for move in part.displacements])
    return (METRES * start).astype(np.float32), (METRES * moves).astype(np.float32)


# iBUG-68 points of the left half on the sculpture, from the middle of the face outwards where a
# row crosses it; decimetres. The nearest skin vertex is the landmark.
JAW_LINE = (
    (0.0, -0.83, 0.92), (0.155, -0.81, 0.90), (0.29, -0.75, 0.80), (0.41, -0.66, 0.60),
    (0.50, -0.57, 0.38), (0.56, -0.42, 0.17), (0.62, -0.22, 0.10), (0.68, 0.02, 0.10),
    (0.70, 0.28, 0.12),
)  # fmt: skip
BROW = (
    (0.11, 0.47, 0.95),
    (0.20, 0.515, 0.94),
    (0.30, 0.54, 0.88),
    (0.40, 0.53, 0.80),
    (0.50, 0.47, 0.68),
)
BRIDGE = ((0.0, 0.33, 0.95), (0.0, 0.22, 1.02), (0.0, 0.11, 1.12), (0.0, 0.01, 1.21))
NOSTRILS = ((0.0, -0.145, 1.06), (0.07, -0.135, 1.05), (0.145, -0.105, 1.03))
EYE_CORNERS = (
    (0.175, 0.305, 0.83), (0.26, 0.368, 0.905), (0.36, 0.372, 0.90),
    (0.45, 0.322, 0.81), (0.36, 0.270, 0.90), (0.26, 0.268, 0.90),
)  # fmt: skip
OUTER_LIPS_UPPER = (
    (0.0, -0.262, 1.08),
    (0.075, -0.258, 1.075),
    (0.165, -0.295, 1.02),
    (0.272, -0.35, 0.90),
)
OUTER_LIPS_LOWER = ((0.0, -0.488, 1.03), (0.09, -0.48, 1.02), (0.18, -0.445, 0.97))
INNER_LIPS_UPPER = ((0.0, -0.338, 1.03), (0.10, -0.333, 1.01), (0.245, -0.35, 0.90))
INNER_LIPS_LOWER = ((0.0, -0.394, 1.01), (0.10, -0.388, 1.0))


def landmark_points() -> Float64:
    """(68, 3) iBUG points on the sculpture, in that order from the subject's right to left."""

    def right(points: tuple[tuple[float, ...], ...]) -> list[tuple[float, ...]]:
        return [(-x, y, z) for x, y, z in points]

    def row(half: tuple[tuple[float, ...], ...]) -> list[tuple[float, ...]]:
        return [*right(half[1:])[::-1], *half]

    eye_right = right(tuple(EYE_CORNERS[i] for i in (3, 2, 1, 0, 5, 4)))
    points = [
        *row(JAW_LINE), *right(BROW)[::-1], *BROW, *BRIDGE, *row(NOSTRILS),
        *eye_right, *EYE_CORNERS,
        *row(OUTER_LIPS_UPPER), *row(OUTER_LIPS_LOWER)[::-1],
        *row(INNER_LIPS_UPPER), *row(INNER_LIPS_LOWER)[::-1],
    ]  # fmt: skip
    return np.array(points)


def _nearest_vertices(vertices: Float32, points: Float64) -> Int64:
    """Index of the vertex nearest to each point."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(vertices).query(points)[1], dtype=np.int64)


def build_head(seed: int) -> DemoHead:
    """The subject: a random head of the family, deterministic from the seed."""
    generator = np.random.default_rng([seed, 1])
    parts = _build_parts(generator)
    shape = random_shape(generator)
    # Lips close on the skin alone: teeth and tongue keep their place behind them.
    pieces = [_shape_part(part, shape, neutral=index == 0) for index, part in enumerate(parts)]
    sizes = [len(neutral) for neutral, _ in pieces]
    starts = np.cumsum([0, *sizes])
    eyes = slice(starts[1], starts[2]), slice(starts[2], starts[3])
    scalp = distances(HAIR, parts[0].surface.vertices) < UNDER_HAIR
    skin_faces = parts[0].surface.faces
    faces = [part.surface.faces + start for part, start in zip(parts, starts, strict=False)]
    faces[0] = skin_faces[~scalp[skin_faces].all(axis=1)]
    centres = np.array([[side * EYE[0], EYE[1], EYE[2]] for side in (1.0, -1.0)])
    return DemoHead(
        neutral=np.concatenate([neutral for neutral, _ in pieces]),
        displacements=np.concatenate([moves for _, moves in pieces], axis=1),
        faces=np.concatenate(faces).astype(np.int32),
        skin_faces=skin_faces,
        head=np.concatenate([part.head for part in parts]).astype(np.float32),
        look=np.concatenate([part.look for part in parts]),
        eyes=eyes,
        eye_centres=(METRES * warp_to_head(centres, shape)).astype(np.float32),
        skin=sizes[0],
        landmarks=_nearest_vertices(parts[0].surface.vertices, landmark_points()),
    )
