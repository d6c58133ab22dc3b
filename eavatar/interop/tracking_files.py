"""The tracking of a sequence for other programs: arrays, or a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32
from eavatar.io import Tracking, atomic


def write_tracking(path: Path, tracking: Tracking, scale: float, first: int = 0) -> Path:
    """Write a tracking as ``.npz``, or as ``.csv`` by the suffix of the path.

    The arrays are those of `Tracking` that drive an avatar, the landmarks, ``timestep`` (T,) and
    ``canonical_to_world`` (T, 4, 4), from canonical units to metres. The table has a row per
    timestep and a column per number: ``landmarks_30_2`` is z of landmark 30.

    Args:
        path: the file.
        tracking: of a sequence, or of some timesteps.
        scale: canonical units to metres.
        first: number of the first timestep.
    """
    arrays: dict[str, NDArray[Any]] = {
        "timestep": np.arange(first, first + len(tracking)),
        "expression": tracking.expression,
        "appearance": tracking.appearance,
        "gaze": tracking.gaze,
        "rotation": tracking.rotation,
        "translation": tracking.translation,
        "canonical_to_world": _to_matrices(tracking, scale),
        "landmarks": tracking.landmarks,
    }
    with atomic(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        else:
            _write_columns(temporary, arrays)
    return path


def _to_matrices(tracking: Tracking, scale: float) -> Float32:
    """(T, 4, 4) from canonical units to metres of the world."""
    matrices = np.tile(np.eye(4, dtype=np.float32), (len(tracking), 1, 1))
    matrices[:, :3, :3] = scale * Rotation.from_rotvec(tracking.rotation).as_matrix()
    matrices[:, :3, 3] = tracking.translation
    return matrices


def _write_columns(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    columns = {}
    for name, array in arrays.items():
        for place in np.ndindex(array.shape[1:]):
            columns["_".join([name, *map(str, place)])] = array[(slice(None), *place)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
