"""What the readers of morphable models share, and what those of open ones return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Bool, Float32, Int64
from eavatar.errors import UserError
from eavatar.face.landmark_lists import LandmarkList

SUPPORTED = (
    "a Basel Face Model 2017 or 2019 (.h5), BFM09_model_info.mat, ICT-FaceKit's "
    "generic_neutral_mesh.obj in its folder FaceXModel, FLAME 2020 or 2023 (.pkl or .npz), or "
    "gnm_head.npz"
)


@dataclass(frozen=True)
class ModelArrays:
    """A model in canonical units and with deviations in the bases, in its own origin.

    Attributes:
        mean: (V, 3).
        identity_basis: (V, 3, I).
        expression_basis: (V, 3, E).
        faces: (F, 3) triangles.
        landmark_vertices: (68,).
    """

    mean: Float32
    identity_basis: Float32
    expression_basis: Float32
    faces: Int64
    landmark_vertices: Int64

    def keep(
        self, wanted: Bool, listed: LandmarkList, path: Path
    ) -> tuple[ModelArrays, LandmarkList]:
        """The model of the wanted vertices and the landmarks, and their list.

        Args:
            wanted: (V,) mask.
            listed: the landmarks of this model.
            path: of the file, for the message.

        Raises:
            UserError: the faces or landmarks name vertices that there are not.
        """
        count = len(self.mean)
        for name, indices in (("faces", self.faces), (listed.origin, listed.vertices)):
            if indices.size == 0 or indices.min() < 0 or indices.max() >= count:
                raise UserError(f"{path}: the {name} name vertices outside 0 to {count - 1}.")
        kept = wanted.copy()
        kept[listed.vertices] = True
        number = np.cumsum(kept) - 1
        landmarks = number[listed.vertices]
        faces = number[self.faces[kept[self.faces].all(axis=1)]]
        bases = self.identity_basis[kept], self.expression_basis[kept]
        model = ModelArrays(self.mean[kept], *bases, faces, landmarks)
        return model, replace(listed, vertices=landmarks)


def check_shape(
    array: NDArray[Any], name: str, shape: tuple[int | None, ...], path: Path
) -> NDArray[Any]:
    """Return the array if it has the shape.

    Args:
        array: of the file.
        name: of the array, for the message.
        shape: expected; None stands for any length.
        path: of the file, for the message.

    Raises:
        UserError: the shape is another one, transposed or not, or the array holds no numbers.
    """

    def fits(found: tuple[int, ...]) -> bool:
        return len(found) == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, found, strict=True)
        )

    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} holds no numbers; give {SUPPORTED}.")
    if not fits(array.shape):
        wanted = " × ".join("any" if length is None else str(length) for length in shape)
        found = " × ".join(str(length) for length in array.shape) or "a single number"
        transposed = ", transposed" if fits(array.shape[::-1]) else ""
        raise UserError(
            f"{path}: {name} is {found} instead of {wanted}{transposed}; give {SUPPORTED}."
        )
    return array
