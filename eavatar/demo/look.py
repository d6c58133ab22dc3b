"""What the parts of the demo head look like: colour and shading attributes per vertex.

Colours are linear sRGB. Attributes interpolate over triangles; the renderer adds mottling and
strands finer than the mesh, looked up in noise tables at the interpolated rest position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32, Float64
from eavatar.demo.controls import bump, lid_edges, smooth_step
from eavatar.demo.sculpt import (
    EYE,
    EYE_WIDTH,
    HAIR,
    MOUTH_Y,
    SHIRT,
    SKIN,
    SculptSurface,
    ambient_occlusion,
    hair_flows,
    soft_shadow,
)

# Columns of a look: colour, then amplitudes and coordinates of the detail, then light.
COLOUR = slice(0, 3)
MOTTLE = 3  # amplitude of blotches and freckles
STRAND = 4  # amplitude of strands
STRAND_ACROSS, STRAND_ALONG = 5, 6  # coordinates of the strand table
GLOSS = 7
OPENNESS = 8  # fraction of ambient light that arrives: ambient occlusion
LIT = 9  # fraction of the key light that arrives: shadow
SOFTNESS = 10  # how far light wraps around the terminator, as in skin
REST = slice(11, 14)  # position on the sculpture, decimetres
COLUMNS = 14

KEY_LIGHT = np.array([0.42, 0.52, 0.74]) / np.linalg.norm([0.42, 0.52, 0.74])

SKIN_TONE = np.array([0.565, 0.345, 0.245])
LIP_TONE = np.array([0.46, 0.165, 0.145])
HAIR_TONE = np.array([0.085, 0.045, 0.024])
SHIRT_TONE = np.array([0.055, 0.115, 0.175])


def _blank(points: NDArray[np.floating], colour: Float64, gloss: float, softness: float) -> Float32:
    """A look of one colour without detail, fully open to the light."""
    look = np.zeros((len(points), COLUMNS), np.float32)
    look[:, COLOUR] = colour
    look[:, GLOSS] = gloss
    look[:, OPENNESS] = look[:, LIT] = 1
    look[:, SOFTNESS] = softness
    look[:, REST] = points
    return look


def _paint(look: Float32, colour: Float64, weight: Float64) -> None:
    """Blend a colour over a look, in place; weight (N,) or (N, 1)."""
    weight = weight.reshape(-1, 1)
    look[:, COLOUR] = (1 - weight) * look[:, COLOUR] + weight * colour


def _add_light(look: Float32, part: int, points: NDArray[np.floating], normals: Float32) -> None:
    """Ambient occlusion and the key light's soft shadow, in place."""
    start = points.astype(np.float32) + 0.01 * normals
    look[:, OPENNESS] = ambient_occlusion(part, start, normals)
    look[:, LIT] = soft_shadow(start, normals, KEY_LIGHT)


def _brow_weight(points: Float64) -> Float64:
    """(N,) density of the brows' hair."""
    x = np.abs(points[:, 0])
    t = np.clip((x - 0.10) / 0.44, 0, 1)
    height = 0.475 + 0.30 * (x - 0.10) - 0.62 * np.maximum(x - 0.13, 0) ** 2
    half = 0.042 * (1 - 0.72 * t**1.5)
    inside = 1 - smooth_step(0.55, 1.25, np.abs(points[:, 1] - height) / half)
    ends = smooth_step(0.075, 0.125, x) * smooth_step(0.56, 0.47, x)
    return inside * ends * (points[:, 2] > 0.5)


def _lip_weight(points: Float64) -> Float64:
    """(N,) the red of the lips."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    u = np.clip(x / 0.275, 0, 1)
    bow = 0.012 * smooth_step(0.0, 0.07, x) * smooth_step(0.16, 0.07, x)
    top = MOUTH_Y + 0.092 * (1 - u**2) ** 0.7 + bow
    bottom = MOUTH_Y - 0.125 * (1 - u**2) ** 0.6
    inside = smooth_step(-0.012, 0.012, top - y) * smooth_step(-0.015, 0.015, y - bottom)
    return inside * (u < 1) * smooth_step(0.6, 0.72, z)


def _lid_weight(points: Float64) -> Float64:
    """(N,) lashes: the rims of the eyes' openings, strongest above."""
    x, y = np.abs(points[:, 0]) - EYE[0], points[:, 1] - EYE[1]
    upper, lower = lid_edges(x)
    near = smooth_step(0.020, 0.004, np.abs(y - upper))
    near = near + 0.45 * smooth_step(0.016, 0.004, np.abs(y - lower))
    return np.clip(near, 0, 1) * (np.abs(x / EYE_WIDTH) < 1.05) * (points[:, 2] > 0.80)


def skin_look(points: Float64, normals: Float32, generator: np.random.Generator) -> Float32:
    """Skin: flush, lips, brows, lashes, stubble; the inside of the mouth dark red."""
    tone = SKIN_TONE * (1 + 0.06 * generator.uniform(-1, 1))
    look = _blank(points, tone, gloss=0.22, softness=1.0)
    mirrored = np.column_stack([np.abs(points[:, 0]), points[:, 1:]])  # right side on left
    flush = tone * [1.06, 0.72, 0.70]
    for centre, radius, weight in (
        ((0.42, -0.02, 0.70), (0.17, 0.13, 0.3), 0.55),
        ((0.0, 0.0, 1.2), (0.12, 0.08, 0.12), 0.6),
        ((0.85, 0.15, -0.15), (0.12, 0.35, 0.25), 0.6),
        ((0.0, -0.74, 1.0), (0.12, 0.08, 0.15), 0.25),
    ):
        _paint(look, flush, weight * bump(mirrored, centre, radius))
    _paint(
        look, tone * [0.72, 0.66, 0.70], 0.45 * bump(mirrored, (0.30, 0.22, 0.9), (0.12, 0.05, 0.2))
    )
    _paint(
        look, tone * [0.78, 0.70, 0.68], 0.5 * bump(mirrored, (0.31, 0.40, 0.9), (0.15, 0.035, 0.2))
    )
    look[:, MOTTLE] = 1.0
    beard = bump(mirrored, (0.0, -0.55, 0.8), (0.50, 0.26, 0.8))[:, 0] * smooth_step(
        -0.2, 0.3, points[:, 2]
    )
    _paint(look, tone * [0.66, 0.70, 0.76], 0.38 * beard)
    lips = _lip_weight(points)
    _paint(look, LIP_TONE, 0.85 * lips)
    look[:, GLOSS] += 0.4 * lips
    look[:, MOTTLE] *= 1 - 0.6 * lips
    inside = ((points - [0, MOUTH_Y, 0.64]) / [0.275, 0.20, 0.30]) ** 2
    _paint(look, np.array([0.12, 0.018, 0.016]), smooth_step(1.08, 1.0, inside.sum(axis=1)))
    _add_light(look, SKIN, points, normals)
    brows = _brow_weight(points)
    _paint(look, HAIR_TONE * 0.9, 0.88 * brows)
    look[:, STRAND] = 0.9 * brows
    look[:, STRAND_ACROSS] = 0.18 * points[:, 1] + 0.10 * mirrored[:, 0]
    look[:, STRAND_ALONG] = 0.5 * mirrored[:, 0]
    _paint(look, HAIR_TONE * 0.5, 0.8 * _lid_weight(points))
    return look


def hair_look(points: NDArray[np.floating], normals: Float32) -> Float32:
    """Hair: dark, glossy, with strands along the flow that also shapes the locks."""
    look = _blank(points, HAIR_TONE, gloss=0.30, softness=0.2)
    around, away = hair_flows(points)
    look[:, STRAND] = 1.0
    look[:, STRAND_ACROSS] = around / (2 * np.pi)  # once around the periodic table
    look[:, STRAND_ALONG] = 0.35 * away
    _add_light(look, HAIR, points, normals)
    return look


def shirt_look(points: NDArray[np.floating], normals: Float32) -> Float32:
    """A knitted shirt with a darker collar."""
    look = _blank(points, SHIRT_TONE, gloss=0.05, softness=0.35)
    slope = points[:, 1] + 1.02 + 0.34 * (points[:, 2] + 0.2)
    _paint(look, SHIRT_TONE * 0.6, smooth_step(-0.10, -0.07, slope))
    look[:, STRAND] = 0.25
    look[:, STRAND_ACROSS], look[:, STRAND_ALONG] = 0.33 * points[:, 0], 0.7 * points[:, 1]
    _add_light(look, SHIRT, points, normals)
    return look


def eye_look(eye: SculptSurface, generator: np.random.Generator) -> Float32:
    """White, iris with a dark rim, pupil; glossy."""
    points = eye.vertices.astype(np.float64)
    look = _blank(points, np.array([0.72, 0.68, 0.65]), gloss=1.0, softness=0.5)
    centre = points.mean(axis=0) * [1, 0, 0] + [0, *EYE[1:]]
    direction = points - centre
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    polar = np.arccos(np.clip(direction[:, 2], -1, 1))
    iris = np.array([0.10, 0.19, 0.24]) * generator.uniform(0.85, 1.15, 3)
    _paint(look, np.array([0.62, 0.42, 0.38]), smooth_step(0.55, 1.2, polar))
    _paint(look, iris * 0.25, smooth_step(0.53, 0.47, polar))
    _paint(look, iris, smooth_step(0.47, 0.40, polar))
    _paint(look, iris * 1.5, smooth_step(0.36, 0.26, polar))
    _paint(look, np.full(3, 0.006), smooth_step(0.24, 0.19, polar))
    look[:, STRAND] = 0.5 * smooth_step(0.5, 0.42, polar) * smooth_step(0.18, 0.25, polar)
    look[:, STRAND_ACROSS] = np.arctan2(direction[:, 1], direction[:, 0]) * 0.08
    # The lids and the brow keep light off the upper part of the ball.
    look[:, OPENNESS] = 0.85 - 0.5 * smooth_step(0.02, 0.07, np.abs(points[:, 1] - EYE[1] + 0.012))
    look[:, LIT] = smooth_step(0.08, 0.0, points[:, 1] - EYE[1])
    return look


def teeth_look(points: NDArray[np.floating], upper: bool) -> Float32:
    """Teeth, gum at the root, gaps between the teeth, darker towards the back."""
    look = _blank(points, np.array([0.66, 0.60, 0.49]), gloss=0.6, softness=0.6)
    root = MOUTH_Y + 0.125 if upper else MOUTH_Y - 0.155
    from_root = np.abs(points[:, 1] - root)
    _paint(look, np.array([0.40, 0.12, 0.11]), smooth_step(0.038, 0.022, from_root))
    along = np.arcsin(np.clip(points[:, 0] / (0.235 if upper else 0.215), -1, 1)) / (
        np.pi / 2 * 0.92
    )
    gap = smooth_step(0.30, 0.0, np.abs(np.sin(along * np.pi * 5)))
    _paint(look, np.array([0.16, 0.09, 0.06]), 0.7 * gap)
    depth = smooth_step(0.74, 0.92, points[:, 2])
    look[:, OPENNESS] = 0.15 + 0.6 * depth
    look[:, LIT] = 0.65 * depth if upper else 0.5 * depth
    return look


def tongue_look(points: NDArray[np.floating]) -> Float32:
    """A dark pink tongue, darker towards the back."""
    look = _blank(points, np.array([0.42, 0.13, 0.125]), gloss=0.4, softness=0.8)
    depth = smooth_step(0.5, 0.88, points[:, 2])
    look[:, OPENNESS] = 0.08 + 0.4 * depth
    look[:, LIT] = 0.3 * depth
    look[:, MOTTLE] = 1.0
    return look
