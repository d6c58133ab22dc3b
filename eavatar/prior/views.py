"""Which timestep and cameras show a generator the head: neutral, and from the sides it wants.

Letters: T timesteps of all sequences, C cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Bool, Float64
from eavatar.backends import WantedView

# Where a camera sees the face from within these degrees, the least expression decides.
FRONTAL = 15.0


@dataclass(frozen=True)
class ChosenView:
    """A camera that stands for a wanted view.

    Attributes:
        name: of the wanted view.
        camera: index.
        off: degrees between where the camera is and where it should be.
    """

    name: str
    camera: int
    off: float


def directions(centres: Float64, rotations: Float64, translations: Float64) -> Float64:
    """Unit vectors from the head to each camera in the head's axes: left, up, front.

    Args:
        centres: (C, 3) of the cameras, world, metres.
        rotations: (T, 3) of the head, axis-angle, radians.
        translations: (T, 3) of the head, metres.

    Returns:
        (T, C, 3).
    """
    towards = centres[None] - translations[:, None]
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    axes = Rotation.from_rotvec(rotations).as_matrix()
    turned: Float64 = np.einsum("tji,tcj->tci", axes, towards)
    return turned


def choose_timestep(expressions: Float64, seen: Float64, usable: Bool) -> int:
    """The timestep with the least expression, of those with a camera in front of the face.

    If there is never one within `FRONTAL` degrees, of those with the most frontal one.

    Args:
        expressions: (T, E) coefficients, in standard deviations.
        seen: (T, C, 3) as of `directions`.
        usable: (T, C) whose masks have not failed.
    """
    off = np.where(usable, angles(seen, 0), np.inf).min(axis=1)
    strength = np.sqrt((expressions**2).mean(axis=1))
    strength[off > max(FRONTAL, off.min())] = np.inf
    return int(strength.argmin())


def choose_cameras(wanted: Sequence[WantedView], seen: Float64, usable: Bool) -> list[ChosenView]:
    """The nearest usable camera for each view; none for a view that no other camera has.

    Args:
        wanted: the views.
        seen: (C, 3) of a timestep, as of `directions`.
        usable: (C,) whose masks have not failed.
    """
    chosen: list[ChosenView] = []
    for view in wanted:
        off = np.where(usable, angles(seen, view.yaw), np.inf)
        off[[other.camera for other in chosen]] = np.inf
        camera = int(off.argmin())
        if off[camera] <= view.tolerance:
            chosen.append(ChosenView(view.name, camera, float(off[camera])))
    return chosen


def angles(seen: Float64, yaw: float) -> Float64:
    """Degrees between directions (..., 3) and that of a yaw at the height of the head, (...)."""
    turn = np.radians(yaw)
    axis = np.array([np.sin(turn), 0.0, np.cos(turn)])
    degrees: Float64 = np.degrees(np.arccos((seen @ axis).clip(-1, 1)))
    return degrees
