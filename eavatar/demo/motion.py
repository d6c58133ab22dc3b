"""The demo subject's motion: poses, gaze and expressions of each sequence over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eavatar.arrays import Float64
from eavatar.demo.controls import CONTROLS

HELD_OUT = "FREE"
SECONDS_PER_TIMESTEP = 0.2
REST = np.array([0.0, -0.034, -0.050])  # of the model frame's origin in world space, metres

# Key frames, evenly spaced over a sequence. "smile", "brow_raise" and "blink" set both sides;
# "turn" is (yaw, pitch, roll) in degrees, "shift" in centimetres, "look" (yaw, pitch) in degrees.
Key = Mapping[str, float | tuple[float, ...]]
SEQUENCES: dict[str, tuple[Key, ...]] = {
    "EXP-1-head": (
        {},
        {"turn": (20, 0, 0), "look": (-8, 0)},
        {"turn": (12, 12, 4), "shift": (0.8, 0.2, 0.4), "smile": 0.3},
        {"turn": (-20, 4, 0), "shift": (-0.8, 0, 0)},
        {"turn": (-12, -14, -5), "brow_raise": 0.5},
        {"turn": (0, 17, 0), "shift": (0, -0.4, 0.8), "jaw_open": 0.25},
        {"turn": (4, -16, 9), "shift": (0.5, 0.3, -0.5), "smile": 0.4},
        {"turn": (-5, 0, -10), "shift": (-0.6, 0, 0.3), "mouth_frown": 0.3},
    ),
    "EXP-2-eyes": (
        {"look": (0, 0)},
        {"look": (26, 3), "brow_raise": 0.7, "turn": (3, 0, 0)},
        {"blink": 1.0, "look": (0, -8)},
        {"look": (-26, 2), "brow_frown": 0.8, "turn": (-4, 2, 0)},
        {"look": (0, 18), "brow_raise": 1.0, "shift": (0, 0.2, 0)},
        {"blink_left": 1.0, "smile_left": 0.5, "turn": (5, 3, 3)},
        {"look": (10, -16), "blink": 0.35, "brow_frown": 0.5, "turn": (0, -5, 0)},
        {"blink_right": 1.0, "smile_right": 0.5, "turn": (-6, 0, -3)},
        {"brow_raise_left": 1.0, "look": (-15, -6)},
        {"brow_raise_right": 1.0, "look": (15, 8), "blink": 0.1},
    ),
    "EXP-5-mouth": (
        {},
        {"jaw_open": 0.5, "turn": (4, 0, 0)},
        {"jaw_open": 1.0, "upper_lip_raise": 0.3},
        {"pucker": 1.0, "turn": (-6, 4, 2)},
        {"pucker": 0.8, "jaw_open": 0.45},
        {"smile": 1.0, "upper_lip_raise": 0.3, "turn": (8, -3, 0)},
        {"upper_lip_raise": 1.0, "lower_lip_drop": 1.0, "mouth_stretch": 0.7},
        {"cheek_puff": 1.0, "pucker": 0.2, "turn": (-4, 0, 0)},
        {"jaw_open": 0.35, "jaw_side": 1.0, "turn": (0, -4, 3)},
        {"smile_left": 1.0, "jaw_side": -0.6, "blink_left": 0.4},
        {"smile_right": 1.0, "mouth_frown": 0.2, "jaw_side": -1.0, "jaw_open": 0.3},
    ),
    "EMO-1-shout+laugh": (
        {"brow_raise": 0.2},
        {"jaw_open": 0.7, "brow_raise": 0.7, "upper_lip_raise": 0.5, "turn": (0, 5, 0)},
        {"jaw_open": 1.0, "brow_raise": 1.0, "lower_lip_drop": 0.6, "mouth_stretch": 0.4,
         "turn": (0, 9, 0)},
        {"jaw_open": 0.8, "brow_frown": 1.0, "upper_lip_raise": 0.8, "sneer": 0.6,
         "turn": (7, -6, 0)},
        {"smile": 0.6, "blink": 0.3, "turn": (0, -3, 3)},
        {"smile": 1.0, "jaw_open": 0.45, "blink": 0.5, "upper_lip_raise": 0.6, "turn": (-8, 6, 5)},
        {"smile": 1.0, "jaw_open": 0.7, "brow_raise": 0.5, "upper_lip_raise": 0.5,
         "turn": (-4, 10, 6)},
        {"smile": 0.8, "jaw_open": 0.25, "blink": 0.8, "lower_lip_drop": 0.4, "turn": (6, -8, -4)},
    ),
    "EMO-3-angry+sad": (
        {"brow_frown": 0.3},
        {"brow_frown": 1.0, "mouth_frown": 0.4, "turn": (0, -8, 0), "look": (0, 8)},
        {"brow_frown": 1.0, "sneer": 1.0, "upper_lip_raise": 0.5, "turn": (-10, -6, 0)},
        {"brow_frown": 0.9, "jaw_open": 0.4, "lower_lip_drop": 1.0, "sneer": 0.7,
         "mouth_stretch": 1.0, "turn": (6, -9, 2)},
        {"mouth_frown": 0.6, "brow_raise": 0.4, "look": (0, -8)},
        {"mouth_frown": 1.0, "brow_raise": 0.7, "brow_frown": 0.5, "blink": 0.4,
         "turn": (8, -12, 4)},
        {"mouth_frown": 1.0, "blink": 0.8, "lower_lip_drop": 0.3, "turn": (4, -15, 6)},
        {"mouth_frown": 0.7, "cheek_puff": 0.5, "pucker": 0.3, "blink": 0.2, "turn": (-6, -6, -4)},
    ),
    HELD_OUT: (
        {"turn": (6, 2, 0), "smile": 0.2},
        {"turn": (14, 5, 3), "smile": 0.8, "jaw_open": 0.3, "look": (-12, 0)},
        {"turn": (3, -5, -3), "jaw_open": 0.85, "brow_raise": 0.6, "smile_left": 0.4},
        {"turn": (-13, 4, 2), "pucker": 0.8, "brow_frown": 0.6, "shift": (-0.5, 0.1, 0.3)},
        {"turn": (-8, 8, -4), "jaw_open": 0.6, "upper_lip_raise": 0.5, "brow_frown": 0.7,
         "mouth_stretch": 0.4},
        {"turn": (2, -9, 5), "smile": 0.9, "blink": 0.6, "lower_lip_drop": 0.5,
         "shift": (0.4, 0, 0)},
        {"turn": (10, -3, 4), "mouth_frown": 0.8, "jaw_open": 0.3, "blink_right": 0.5},
        {"turn": (-4, 6, -5), "smile_right": 0.8, "jaw_open": 0.5, "look": (12, 6),
         "brow_raise": 0.4},
    ),
}  # fmt: skip
BOTH_SIDES = ("smile", "brow_raise", "blink")


@dataclass(frozen=True)
class ActedMotion:
    """The motion of one sequence.

    Attributes:
        time_s: (T,) seconds.
        expression: (T, K) strengths of `eavatar.demo.controls.CONTROLS`.
        gaze: (T, 2) yaw (to the subject's left) and pitch (up), radians.
        rotation: (T, 3, 3) model frame to world.
        translation: (T, 3) metres.
    """

    time_s: Float64
    expression: Float64
    gaze: Float64
    rotation: Float64
    translation: Float64


def _expression_vector(key: Key) -> Float64:
    """(K,) strengths of one key frame."""
    strength = np.zeros(len(CONTROLS))
    for name, value in key.items():
        if name in BOTH_SIDES:
            strength[CONTROLS.index(f"{name}_left")] = value
            strength[CONTROLS.index(f"{name}_right")] = value
        elif name not in ("turn", "shift", "look"):
            strength[CONTROLS.index(name)] = value
    return strength


def _rotation_matrices(degrees: Float64) -> Float64:
    """(T, 3, 3) from (T, 3) yaw to the subject's left, pitch up, roll."""
    from scipy.spatial.transform import Rotation

    yaw, pitch, roll = degrees.T
    angles = np.stack([yaw, -pitch, roll], axis=1)
    matrices: Float64 = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
    return matrices


def act(sequence: str, timesteps: int) -> ActedMotion:
    """The key frames of a sequence, interpolated without overshoot at ``timesteps`` times."""
    from scipy.interpolate import PchipInterpolator

    keys = SEQUENCES[sequence]
    rows = [
        np.concatenate(
            [
                _expression_vector(key),
                np.array(key.get("look", (0, 0))),
                np.array(key.get("turn", (0, 0, 0))),
                np.array(key.get("shift", (0, 0, 0))),
            ]
        )
        for key in keys
    ]
    # The half-step offset keeps sequences of different counts from sharing key frames.
    times = (np.arange(timesteps) + 0.5) / timesteps * (len(keys) - 1)
    curve = PchipInterpolator(np.arange(len(keys)), np.stack(rows))(times)
    expression, look, turn, shift = np.split(curve, np.cumsum([len(CONTROLS), 2, 3]), axis=1)
    rotation = _rotation_matrices(turn)
    # The head turns about the top of the neck, 6 cm below and 2 cm behind the origin.
    pivot = np.array([0.0, -0.06, -0.02])
    translation = REST + 0.01 * shift + pivot - rotation @ pivot
    time_s = SECONDS_PER_TIMESTEP * (np.arange(timesteps, dtype=np.float64) + 0.5)
    gaze = np.radians(look)
    return ActedMotion(time_s, expression, gaze, rotation, translation)
