"""How the demo heads move and differ: expression controls, neck weights and the family's shapes.

All are fields over the points of the sculpture (`eavatar.demo.sculpt`), so that they apply to any
mesh of it, fine or coarse. Points are (N, 3) and displacements (…, N, 3), both in decimetres.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eavatar.demo.sculpt import EYE, EYE_RADIUS, LIPS_APART, MOUTH_WIDTH, MOUTH_Y

Array = NDArray[np.float64]

JAW_HINGE = np.array([0.0, 0.02, 0.02])
JAW_ANGLE = np.radians(19.0)  # fully open


def smooth_step(low: float, high: float, x: NDArray[np.floating]) -> Array:
    """0 below ``low``, 1 above ``high``, smooth between; falls where ``low > high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    eased: Array = t * t * (3 - 2 * t)
    return eased


def bump(points: Array, centre: tuple[float, ...], radius: tuple[float, ...]) -> Array:
    """(N, 1) Gaussian of axis-aligned radii about a centre."""
    offset = (points - np.array(centre)) / np.array(radius)
    weight: Array = np.exp(-0.5 * (offset**2).sum(-1, keepdims=True))
    return weight


def mirrored(points: Array, centre: tuple[float, ...], radius: tuple[float, ...]) -> Array:
    """(N, 3) signed weights of a bump and its mirror image; multiply with a left-side vector."""
    left = bump(points, centre, radius)
    right = bump(points, (-centre[0], *centre[1:]), radius)
    return np.concatenate([left - right, left + right, left + right], axis=-1)


def mouth_line(x: Array) -> Array:
    """Height of the line between the lips."""
    u = np.clip(np.abs(x) / MOUTH_WIDTH, 0, 1)
    return MOUTH_Y + 0.012 * u * u - 0.006 * (1 - smooth_step(0, 0.25, u))


def below_mouth(points: Array) -> Array:
    """(N,) 1 below the mouth, 0 above: sharp between the lips, ever softer beyond the corners."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    past = np.maximum(x - MOUTH_WIDTH, 0)
    softness = 0.010 + 0.07 * smooth_step(0.16, 0.275, x) + 1.1 * past
    softness = softness + 0.3 * smooth_step(0.75, 0.4, z)
    return smooth_step(-1, 1, (mouth_line(x) - y) / softness)


def jaw_weight(points: Array) -> Array:
    """(N,) share of the jaw's motion."""
    y, z = points[:, 1], points[:, 2]
    throat = smooth_step(-1.02, -0.62, y + 0.25 * z)
    return below_mouth(points) * throat * smooth_step(-0.15, 0.30, z)


def head_weight(points: Array) -> Array:
    """(N,) share of the head's pose: 1 on the head, 0 at the collar, smooth along the neck."""
    return smooth_step(-1.25, -0.76, points[:, 1] + 0.35 * points[:, 2])


def lip_closure(points: Array) -> Array:
    """Displacement that brings the sculpture's lips together: the neutral face."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    u = np.clip(x / MOUTH_WIDTH, 0, 1)
    offset = mouth_line(x) - y
    amount = LIPS_APART * (1 - u**4) * np.exp(-((offset / 0.13) ** 2)) * smooth_step(0.5, 0.72, z)
    result = np.zeros_like(points)
    result[:, 1] = amount * (2 * below_mouth(points) - 1)
    return result


def jaw_open(points: Array, weight: Array) -> Array:
    """The jaw turned down about its hinge."""
    cosine, sine = np.cos(JAW_ANGLE), np.sin(JAW_ANGLE)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    offset: Array = weight[:, None] * ((points - JAW_HINGE) @ (turn.T - np.eye(3)))
    return offset


def jaw_side(points: Array, weight: Array) -> Array:
    """The jaw shifted to the subject's left."""
    offset: Array = weight[:, None] * np.array([0.085, 0.0, 0.0])
    return offset


def smile(points: Array) -> Array:
    """Corner of the mouth outwards and up, with the cheek and the lower lid; left side."""
    moved = bump(points, (0.265, -0.36, 0.88), (0.13, 0.11, 0.25)) * [0.095, 0.085, -0.06]
    moved = moved + bump(points, (0.39, -0.02, 0.76), (0.14, 0.14, 0.18)) * [0.015, 0.05, 0.05]
    return moved + bump(points, (0.31, 0.20, 0.90), (0.11, 0.04, 0.1)) * [0.0, 0.02, 0.0]


def mouth_frown(points: Array) -> Array:
    """Both corners of the mouth down, the middle of the lower lip up."""
    moved = mirrored(points, (0.27, -0.37, 0.88), (0.11, 0.12, 0.2)) * [0.012, -0.085, 0.0]
    chin = bump(points, (0.0, -0.52, 0.98), (0.14, 0.07, 0.12)) * [0.0, 0.02, 0.02]
    return moved + chin


def mouth_stretch(points: Array) -> Array:
    """Both corners of the mouth outwards and a little down, as in a grimace."""
    return mirrored(points, (0.27, -0.37, 0.88), (0.13, 0.12, 0.25)) * [0.09, -0.03, -0.05]


def pucker(points: Array) -> Array:
    """Lips drawn together and forward."""
    near = bump(points, (0.0, -0.36, 0.98), (0.22, 0.14, 0.24))
    moved = near * bump(points, (0.0, -0.36, 1.0), (0.20, 0.14, 0.3)) * [0.0, 0.0, 0.10]
    moved[:, 0] -= 0.48 * points[:, 0] * near[:, 0]
    return moved


def upper_lip_raise(points: Array) -> Array:
    """Upper lip up, showing the upper teeth."""
    above = 1 - below_mouth(points)
    return above[:, None] * bump(points, (0.0, -0.31, 1.0), (0.16, 0.09, 0.2)) * [0.0, 0.085, 0.02]


def lower_lip_drop(points: Array) -> Array:
    """Lower lip down, showing the lower teeth."""
    below = below_mouth(points)[:, None]
    return below * bump(points, (0.0, -0.42, 1.0), (0.15, 0.09, 0.2)) * [0.0, -0.085, 0.01]


def brow_raise(points: Array) -> Array:
    """Brow and forehead up, the upper lid a little; left side."""
    moved = bump(points, (0.29, 0.56, 0.82), (0.19, 0.11, 0.25)) * [0.0, 0.095, 0.0]
    return moved * smooth_step(0.36, 0.46, points[:, 1])[:, None]


def brow_frown(points: Array) -> Array:
    """Inner ends of both brows down and together."""
    moved = mirrored(points, (0.14, 0.50, 0.92), (0.10, 0.09, 0.15)) * [-0.045, -0.07, 0.02]
    return moved * smooth_step(0.35, 0.44, points[:, 1])[:, None]


def blink(points: Array) -> Array:
    """The upper lid drawn over the eyeball, the lower lid a little up; left side."""
    offset = points - np.array(EYE)
    radius = np.linalg.norm(offset, axis=-1)
    u = offset[:, 0] / 0.142
    arch = np.maximum(1 - u * u, 0)
    tilt = 0.012 * u - 0.004
    upper, lower = tilt + 0.063 * arch**0.75, tilt - 0.048 * arch**0.9
    meet = lower + 0.12 * (upper - lower)
    share_upper = smooth_step(0.15, 0.0, offset[:, 1] - upper)
    share_lower = smooth_step(-0.10, 0.0, offset[:, 1] - lower)
    is_upper = offset[:, 1] > (upper + lower) / 2
    drop = np.where(is_upper, share_upper * (meet - upper - 0.006), share_lower * (meet - lower))
    # The ball under the lids stays, and so does the skin in front of and behind them.
    lid = smooth_step(0.122, 0.130, radius) * smooth_step(0.26, 0.17, radius)
    lid = lid * (offset[:, 2] > -0.02) * (np.abs(points[:, 0] - EYE[0]) < 0.16)
    target = offset.copy()
    target[:, 1] += drop * lid
    target *= (radius / np.maximum(np.linalg.norm(target, axis=-1), 1e-6))[:, None]
    shift: Array = target - offset
    return shift


def cheek_puff(points: Array) -> Array:
    """Both cheeks blown up."""
    return mirrored(points, (0.42, -0.26, 0.62), (0.16, 0.18, 0.2)) * [0.12, 0.0, 0.05]


def sneer(points: Array) -> Array:
    """Wings of the nose and upper lip up, bridge wrinkled."""
    above = (1 - below_mouth(points))[:, None]
    wings = mirrored(points, (0.13, -0.06, 1.0), (0.08, 0.10, 0.12)) * [0.02, 0.055, 0.0]
    lip = above * mirrored(points, (0.16, -0.29, 1.0), (0.08, 0.07, 0.15)) * [0.0, 0.05, 0.0]
    return wings + lip


def on_the_right(left: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A control of the left side, mirrored."""
    mirror = np.array([-1.0, 1.0, 1.0])
    return lambda points: left(points * mirror) * mirror


JAW_CONTROLS = {"jaw_open": jaw_open, "jaw_side": jaw_side}
SKIN_CONTROLS: dict[str, Callable[[Array], Array]] = {
    "smile_left": smile,
    "smile_right": on_the_right(smile),
    "mouth_frown": mouth_frown,
    "mouth_stretch": mouth_stretch,
    "pucker": pucker,
    "upper_lip_raise": upper_lip_raise,
    "lower_lip_drop": lower_lip_drop,
    "brow_raise_left": brow_raise,
    "brow_raise_right": on_the_right(brow_raise),
    "brow_frown": brow_frown,
    "blink_left": blink,
    "blink_right": on_the_right(blink),
    "cheek_puff": cheek_puff,
    "sneer": sneer,
}
CONTROLS = (*JAW_CONTROLS, *SKIN_CONTROLS)


def skin_displacements(points: Array) -> Array:
    """(K, N, 3) displacement of the skin at full strength of each of `CONTROLS`."""
    weight = jaw_weight(points)
    jaw = [field(points, weight) for field in JAW_CONTROLS.values()]
    return np.stack(jaw + [field(points) for field in SKIN_CONTROLS.values()])


def jaw_displacements(points: Array) -> Array:
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


def random_shape(generator: np.random.Generator) -> Array:
    """(S, 3) coefficients of `SHAPES` and, in the last row, the stretch of the whole head."""
    return generator.normal(size=(len(SHAPES) + 1, 3)).clip(-2, 2)


def shape_displacement(points: Array, coefficients: Array) -> Array:
    """Displacement from the sculpture to a head of the family, before the eyes are kept round."""
    result: Array = points * coefficients[-1] * [0.02, 0.015, 0.015]
    for (centre, radius, deviation), amount in zip(SHAPES, coefficients[:-1], strict=True):
        weight = mirrored(points, centre, (radius,) * 3) / (1 if centre[0] else 2)
        result = result + weight * amount * deviation
    return result


def warp(points: Array, coefficients: Array) -> Array:
    """Points of the sculpture on the head with these coefficients.

    Eyeballs and lids move without changing shape, so that lids keep fitting the ball.
    """
    result = shape_displacement(points, coefficients)
    for side in (1, -1):
        eye = np.array([[side * EYE[0], EYE[1], EYE[2]]])
        away = np.linalg.norm(points - eye, axis=-1)[:, None] - EYE_RADIUS
        rigid = smooth_step(0.16, 0.05, away)
        result = (1 - rigid) * result + rigid * shape_displacement(eye, coefficients)
    return points + result
