"""The training sequences of a subject on one axis of time, tracked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Bool, Float64
from eavatar.data.frames import read_usable
from eavatar.io import Identity, Tracking, read_arrays
from eavatar.prior.portrait import Head
from eavatar.transforms import Similarity


@dataclass(frozen=True)
class Timesteps:
    """Those of which a mask is usable. T timesteps, C cameras.

    Attributes:
        keys: T sequences and timesteps.
        usable: (T, C) whose masks have not failed.
        expression: (T, E).
        rotation: (T, 3) axis-angle, radians.
        translation: (T, 3) metres.
        identity: of the subject.
    """

    keys: list[tuple[str, int]]
    usable: Bool
    expression: Float64
    rotation: Float64
    translation: Float64
    identity: Identity

    def head(self, step: int) -> Head:
        """Where the head is at a timestep."""
        rotation = Rotation.from_rotvec(self.rotation[step]).as_matrix()
        pose = Similarity(float(self.identity.scale), rotation, self.translation[step])
        return Head(pose, self.identity.landmarks.astype(np.float64))


def read_timesteps(capture: Path, face: Path, serials: tuple[str, ...]) -> Timesteps:
    """The timesteps of a subject.

    Args:
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        serials: of the C cameras.

    Raises:
        UserError: a file is missing or malformed, or all masks have failed.
    """
    keys, usable = read_usable(capture, "train", serials)
    names = sorted({name for name, _ in keys})
    tracks = {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in names}

    def gather(field: str) -> Float64:
        rows = [getattr(tracks[name], field)[timestep] for name, timestep in keys]
        return np.stack(rows).astype(np.float64)

    return Timesteps(
        keys,
        usable,
        gather("expression"),
        gather("rotation"),
        gather("translation"),
        read_arrays(Identity, face / "identity.npz"),
    )
