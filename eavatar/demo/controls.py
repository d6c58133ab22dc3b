"""Blendshapes of the demo heads: expression controls, neck weights and identities of the family.

All are functions of the points of the sculpture (`eavatar.demo.sculpt`), so that they apply to any
mesh of it, fine or coarse. Points are (N, 3) and displacements (…, N, 3), both in decimetres.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64
from eavatar.demo.sculpt import EYE, EYE_RADIUS, EYE_WIDTH, LIPS_APART, MOUTH_WIDTH, MOUTH_Y

JAW_HINGE = np.array([0.0, 0.02, 0.02])
JAW_ANGLE = np.radians(19.0)  # fully open


def smooth_step(low: float, high: float, x: NDArray[np.floating]) -> Float64:
    """0 below ``low``, 1 above ``high``, smooth between; falls where ``low > high``.

    `eavatar.demo.sculpt` has the compiled form for one value.
    """
    t = np.clip((x - low) / (high - low), 0, 1)
    eased: Float64 = t * t * (3 - 2 * t)
    return eased


def bump(points: Float64, centre: tuple[float, ...], radius: tuple[float, ...]) -> Float64:
    """(N, 1) Gaussian of axis-aligned radii about a centre."""
    offset = (points - np.array(centre)) / np.array(radius)
    weight: Float64 = np.exp(-0.5 * (offset**2).sum(-1, keepdims=True))
    return weight


def _mirrored(points: Float64, centre: tuple[float, ...], radius: tuple[float, ...]) -> Float64:
    """(N, 3) signed weights of a bump and its mirror image; multiply with a left-side vector."""
    left = bump(points, centre, radius)
    right = bump(points, (-centre[0], *centre[1:]), radius)
    return np.concatenate([left - right, left + right, left + right], axis=-1)


def lid_edges(x: Float64) -> tuple[Float64, Float64]:
    """Upper and lower edge of an eye's opening (N,) at x (N,), both relative to the eye's centre.

    `eavatar.demo.sculpt` has the compiled form for one value, and that of `_mouth_line`.
    """
    u = x / EYE_WIDTH
    arch = np.maximum(1 - u * u, 0)
    tilt = 0.012 * u - 0.004
    return tilt + 0.063 * arch**0.75, tilt - 0.048 * arch**0.9


def _mouth_line(x: Float64) -> Float64:
    """Height of the line between the lips."""
    u = np.clip(np.abs(x) / MOUTH_WIDTH, 0, 1)
    return MOUTH_Y + 0.012 * u * u - 0.006 * (1 - smooth_step(0, 0.25, u))


def _below_mouth(points: Float64) -> Float64:
    """(N,) 1 below the mouth, 0 above: sharp between the lips, ever softer beyond the corners."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    past = np.maximum(x - MOUTH_WIDTH, 0)
    softness = 0.010 + 0.07 * smooth_step(0.16, 0.275, x) + 1.1 * past
    softness = softness + 0.3 * smooth_step(0.75, 0.4, z)
    return smooth_step(-1, 1, (_mouth_line(x) - y) / softness)


def _jaw_weight(points: Float64) -> Float64:
    """(N,) skinning weight of the jaw."""
    y, z = points[:, 1], points[:, 2]
    throat = smooth_step(-1.02, -0.62, y + 0.25 * z)
    return _below_mouth(points) * throat * smooth_step(-0.15, 0.30, z)


def head_weight(points: Float64) -> Float64:
    """(N,) skinning weight of the head: 1 on the head, 0 at the collar, smooth along the neck."""
    return smooth_step(-1.25, -0.76, points[:, 1] + 0.35 * points[:, 2])


def lip_closure(points: Float64) -> Float64:
    """Displacement that closes the sculpture's lips: the neutral face."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    u = np.clip(x / MOUTH_WIDTH, 0, 1)
    offset = _mouth_line(x) - y
    amount = LIPS_APART * (1 - u**4) * np.exp(-((offset / 0.13) ** 2)) * smooth_step(0.5, 0.72, z)
    result = np.zeros_like(points)
    result[:, 1] = amount * (2 * _below_mouth(points) - 1)
    return result


def _jaw_open(points: Float64, weight: Float64) -> Float64:
    """The jaw turned down about its hinge."""
    cosine, sine = np.cos(JAW_ANGLE), np.sin(JAW_ANGLE)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    offset: Float64 = weight[:, None] * ((points - JAW_HINGE) @ (turn.T - np.eye(3)))
    return offset


def _jaw_side(points: Float64, weight: Float64) -> Float64:
    """The jaw shifted to the subject's left."""
    offset: Float64 = weight[:, None] * np.array([0.085, 0.0, 0.0])
    return offset


def _smile(points: Float64) -> Float64:
    """Corner of the mouth outwards and up, with the cheek and the lower lid; left side."""
    moved = bump(points, (0.265, -0.36, 0.88), (0.13, 0.11, 0.25)) * [0.095, 0.085, -0.06]
    moved = moved + bump(points, (0.39, -0.02, 0.76), (0.14, 0.14, 0.18)) * [0.015, 0.05, 0.05]
    return moved + bump(points, (0.31, 0.20, 0.90), (0.11, 0.04, 0.1)) * [0.0, 0.02, 0.0]


def _mouth_frown(points: Float64) -> Float64:
    """Both corners of the mouth down, the middle of the lower lip up."""
    moved = _mirrored(points, (0.27, -0.37, 0.88), (0.11, 0.12, 0.2)) * [0.012, -0.085, 0.0]
    chin = bump(points, (0.0, -0.52, 0.98), (0.14, 0.07, 0.12)) * [0.0, 0.02, 0.02]
    return moved + chin


def _mouth_stretch(points: Float64) -> Float64:
    """Both corners of the mouth outwards and a little down, as in a grimace."""
    return _mirrored(points, (0.27, -0.37, 0.88), (0.13, 0.12, 0.25)) * [0.09, -0.03, -0.05]


def _pucker(points: Float64) -> Float64:
    """Lips drawn together and forward."""
    near = bump(points, (0.0, -0.36, 0.98), (0.22, 0.14, 0.24))
    moved = near * bump(points, (0.0, -0.36, 1.0), (0.20, 0.14, 0.3)) * [0.0, 0.0, 0.10]
    moved[:, 0] -= 0.48 * points[:, 0] * near[:, 0]
    return moved


def _upper_lip_raise(points: Float64) -> Float64:
    """Upper lip up, showing the upper teeth."""
    above = 1 - _below_mouth(points)
    return above[:, None] * bump(points, (0.0, -0.31, 1.0), (0.16, 0.09, 0.2)) * [0.0, 0.085, 0.02]


def _lower_lip_drop(points: Float64) -> Float64:
    """Lower lip down, showing the lower teeth."""
    below = _below_mouth(points)[:, None]
    return below * bump(points, (0.0, -0.42, 1.0), (0.15, 0.09, 0.2)) * [0.0, -0.085, 0.01]


def _brow_raise(points: Float64) -> Float64:
    """Brow and forehead up, the upper lid a little; left side."""
    moved = bump(points, (0.29, 0.56, 0.82), (0.19, 0.11, 0.25)) * [0.0, 0.095, 0.0]
    return moved * smooth_step(0.36, 0.46, points[:, 1])[:, None]


def _brow_frown(points: Float64) -> Float64:
    """Inner ends of both brows down and together."""
    moved = _mirrored(points, (0.14, 0.50, 0.92), (0.10, 0.09, 0.15)) * [-0.045, -0.07, 0.02]
    return moved * smooth_step(0.35, 0.44, points[:, 1])[:, None]


def _blink(points: Float64) -> Float64:
    """The upper lid drawn over the eyeball, the lower lid a little up; left side."""
    offset = points - np.array(EYE)
    radius = np.linalg.norm(offset, axis=-1)
    upper, lower = lid_edges(offset[:, 0])
    meet = lower + 0.12 * (upper - lower)
    weight_upper = smooth_step(0.15, 0.0, offset[:, 1] - upper)
    weight_lower = smooth_step(-0.10, 0.0, offset[:, 1] - lower)
    is_upper = offset[:, 1] > (upper + lower) / 2
    drop = np.where(is_upper, weight_upper * (meet - upper - 0.006), weight_lower * (meet - lower))
    # The ball under the lids stays, and so does the skin in front of and behind them.
    lid = smooth_step(0.122, 0.130, radius) * smooth_step(0.26, 0.17, radius)
    lid = lid * (offset[:, 2] > -0.02) * (np.abs(points[:, 0] - EYE[0]) < 0.16)
    target = offset.copy()
    target[:, 1] += drop * lid
    target *= (radius / np.maximum(np.linalg.norm(target, axis=-1), 1e-6))[:, None]
    shift: Float64 = target - offset
    return shift


def _cheek_puff(points: Float64) -> Float64:
    """Both cheeks blown up."""
    return _mirrored(points, (0.42, -0.26, 0.62), (0.16, 0.18, 0.2)) * [0.12, 0.0, 0.05]


def _sneer(points: Float64) -> Float64:
    """Wings of the nose and upper lip up, bridge wrinkled."""
    above = (1 - _below_mouth(points))[:, None]
    wings = _mirrored(points, (0.13, -0.06, 1.0), (0.08, 0.10, 0.12)) * [0.02, 0.055, 0.0]
    lip = above * _mirrored(points, (0.16, -0.29, 1.0), (0.08, 0.07, 0.15)) * [0.0, 0.05, 0.0]
    return wings + lip


def _on_the_right(left: Callable[[Float64], Float64]) -> Callable[[Float64], Float64]:
    """A control of the left side, mirrored."""
    mirror = np.array([-1.0, 1.0, 1.0])
    return lambda points: left(points * mirror) * mirror


JAW_CONTROLS = {"jaw_open": _jaw_open, "jaw_side": _jaw_side}
SKIN_CONTROLS: dict[str, Callable[[Float64], Float64]] = {
    "smile_left": _smile,
    "smile_right": _on_the_right(_smile),
    "mouth_frown": _mouth_frown,
    "mouth_stretch": _mouth_stretch,
    "pucker": _pucker,
    "upper_lip_raise": _upper_lip_raise,
    "lower_lip_drop": _lower_lip_drop,
    "brow_raise_left": _brow_raise,
    "brow_raise_right": _on_the_right(_brow_raise),
    "brow_frown": _brow_frown,
    "blink_left": _blink,
    "blink_right": _on_the_right(_blink),
    "cheek_puff": _cheek_puff,
    "sneer": _sneer,
}
CONTROLS = (*JAW_CONTROLS, *SKIN_CONTROLS)


def skin_displacements(points: Float64) -> Float64:
    """(K, N, 3) displacement of the skin at full strength of each of `CONTROLS`."""
    weight = _jaw_weight(points)
    jaw = [field(points, weight) for field in JAW_CONTROLS.values()]
    return np.stack(jaw + [field(points) for field in SKIN_CONTROLS.values()])


def jaw_displacements(points: Float64) -> Float64:
    """(K, N, 3) for what is fixed to the jaw: lower teeth and tongue."""
    result = np.zeros((len(CONTROLS), *points.shape))
    for index, field in enumerate(JAW_CONTROLS.values()):
        result[index] = field(points, np.ones(len(points)))
    return result


# Where heads of the family differ: centre, radius, and standard deviation of the displacement
# of the bump there (mirrored to the right), decimetres. Neighbours overlap: faces stay smooth.
SHAPES = (
    ((0.0, 0.30, 0.95), 0.16, (0.02, 0.02, 0.03)),  # bridge of the nose
    ((0.0, 0.0, 1.15), 0.15, (0.02, 0.03, 0.04)),  # tip
    ((0.13, -0.04, 1.0), 0.10, (0.02, 0.02, 0.02)),  # wings
    ((0.0, -0.20, 1.05), 0.12, (0.00, 0.02, 0.02)),  # philtrum
    ((0.0, -0.36, 1.05), 0.20, (0.04, 0.015, 0.03)),  # lips
    ((0.27, -0.36, 0.88), 0.16, (0.03, 0.015, 0.015)),  # corners of the mouth
    ((0.0, -0.72, 0.95), 0.24, (0.00, 0.05, 0.05)),  # chin
    ((0.22, -0.70, 0.85), 0.20, (0.05, 0.02, 0.02)),  # width of the chin
    ((0.50, -0.45, 0.20), 0.30, (0.06, 0.05, 0.02)),  # angle of the jaw
    ((0.42, -0.25, 0.60), 0.24, (0.05, 0.00, 0.03)),  # cheeks
    ((0.47, 0.07, 0.65), 0.22, (0.04, 0.02, 0.03)),  # cheekbones
    ((0.31, 0.31, 0.80), 0.30, (0.025, 0.02, 0.02)),  # eyes
    ((0.25, 0.50, 0.88), 0.18, (0.00, 0.02, 0.03)),  # brow ridge
    ((0.0, 0.85, 0.85), 0.40, (0.00, 0.02, 0.05)),  # forehead
    ((0.65, 0.60, 0.30), 0.40, (0.04, 0.00, 0.00)),  # temples
    ((0.0, 1.45, 0.0), 0.60, (0.00, 0.06, 0.00)),  # crown
    ((0.0, 0.50, -1.0), 0.60, (0.00, 0.00, 0.08)),  # back of the head
    ((0.85, 0.15, -0.10), 0.25, (0.03, 0.03, 0.02)),  # ears
    ((0.35, -1.0, -0.1), 0.40, (0.04, 0.00, 0.03)),  # neck
)


def random_shape(generator: np.random.Generator) -> Float64:
    """(S, 3) coefficients of `SHAPES` and, in the last row, the stretch of the whole head."""
    return generator.normal(size=(len(SHAPES) + 1, 3)).clip(-2, 2)


def _shape_displacement(points: Float64, coefficients: Float64) -> Float64:
    """Displacement from the sculpture to a head of the family, before the eyes are kept round."""
    result: Float64 = points * coefficients[-1] * [0.02, 0.015, 0.015]
    for (centre, radius, deviation), amount in zip(SHAPES, coefficients[:-1], strict=True):
        weight = _mirrored(points, centre, (radius,) * 3) / (1 if centre[0] else 2)
        result = result + weight * amount * deviation
    return result


def warp_to_head(points: Float64, coefficients: Float64) -> Float64:
    """Points of the sculpture moved to the head with these coefficients.

    Eyeballs and lids move rigidly, so that lids keep fitting the ball.

    Args:
        points: (N, 3) on the sculpture, decimetres.
        coefficients: of `random_shape`.
    """
    result = _shape_displacement(points, coefficients)
    for side in (1, -1):
        eye = np.array([[side * EYE[0], EYE[1], EYE[2]]])
        away = np.linalg.norm(points - eye, axis=-1)[:, None] - EYE_RADIUS
        rigid = smooth_step(0.16, 0.05, away)
        result = (1 - rigid) * result + rigid * _shape_displacement(eye, coefficients)
    return points + result
