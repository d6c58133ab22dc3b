"""GNM Head 3 of Google (Apache-2.0), ``gnm_head.npz`` as published.

    template_vertex_positions (V, 3), vertex_identity_basis (I, V, 3), expression_basis (E, V, 3),
    triangles (F, 3), vertex_groups (G, V) with vertex_group_names (G,)

Metres, y up, z out of the face; coefficients in standard deviations. The group ``skin`` alone is
used. Components that do not move it (teeth, tongue, eyeballs) are left out, and expressions put in
the order of how much they do: published, those of the left eye, the right eye and the mouth follow
one another. It has no joint of the jaw: expressions move it. The reader was run on files of the
published names, shapes and units with made-up values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32
from eavatar.errors import UserError
from eavatar.face.landmark_lists import LandmarkList, find_landmark_list
from eavatar.face.model_arrays import ModelArrays, check_shape
from eavatar.io import DAMAGED_ARRAY

NAMES = (
    "template_vertex_positions",
    "vertex_identity_basis",
    "expression_basis",
    "triangles",
    "vertex_groups",
    "vertex_group_names",
)
SKIN = "skin"
METRES = 10.0  # in canonical units
MIN_MOTION = 1e-4  # canonical units, root mean square over the skin: a hundredth of a millimetre


def read_gnm(
    path: Path,
    identity_components: int | None,
    expression_components: int | None,
) -> tuple[ModelArrays, LandmarkList]:
    """Read the model, and who says where its landmarks are.

    Args:
        path: ``gnm_head.npz``.
        identity_components: the largest number of components that are read; None for all.
        expression_components: likewise, those that move the skin most.

    Raises:
        UserError: the file is damaged or of another version, or no list of landmarks is found.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            mean, identity, expression, triangles, groups, names = (archive[name] for name in NAMES)
    except DAMAGED_ARRAY as error:
        raise UserError(
            f"{path} is no readable gnm_head.npz of version 3 ({error}); fetch it again."
        ) from error
    mean = check_shape(mean, NAMES[0], (None, 3), path)
    count = len(mean)
    identity = check_shape(identity, NAMES[1], (None, count, 3), path)
    expression = check_shape(expression, NAMES[2], (None, count, 3), path)
    faces = check_shape(triangles, NAMES[3], (None, 3), path).astype(np.int64)
    groups = check_shape(groups, NAMES[4], (len(names), count), path)
    if SKIN not in names.tolist():
        raise UserError(f"{path} has no vertex group '{SKIN}'; give gnm_head.npz of version 3.")
    kept = groups[names.tolist().index(SKIN)] > 0.5
    listed = find_landmark_list(path, count)
    model = ModelArrays(
        (METRES * mean).astype(np.float32),
        _as_basis(identity, kept, ordered=False)[..., :identity_components],
        _as_basis(expression, kept, ordered=True)[..., :expression_components],
        faces,
        listed.vertices,
    )
    return model.keep(kept, listed, path)


def _as_basis(stored: NDArray[Any], kept: NDArray[np.bool_], ordered: bool) -> Float32:
    """(V, 3, K) canonical deviations of the components (N, V, 3) that move the kept vertices.

    Args:
        stored: metres.
        kept: (V,) mask.
        ordered: put those first that move them most; else as they are stored.
    """
    basis = METRES * stored.astype(np.float32)
    motion = np.sqrt(np.square(basis[:, kept]).sum(axis=2).mean(axis=1))
    order = np.argsort(-motion, kind="stable") if ordered else np.arange(len(motion))
    used = order[motion[order] > MIN_MOTION]
    return np.ascontiguousarray(np.moveaxis(basis[used], 0, 2))
