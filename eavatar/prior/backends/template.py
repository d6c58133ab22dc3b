"""The generic head fitted to the subject, standing for a generated mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eavatar.backends import PriorBackend
from eavatar.io import Identity, Mesh, read_arrays, read_mesh

if TYPE_CHECKING:
    from eavatar.prior.generate import PriorJob


def generate_template(job: PriorJob) -> Mesh:
    """The generic head in a generator's frame.

    The frame is that of TRELLIS' meshes: a unit box around the origin, z up, the
    face towards -y. Whatever the source, a prior thus passes the same alignment.
    """
    from eavatar.prior.template_fit import fit_head

    landmarks = read_arrays(Identity, job.identity).landmarks
    head = fit_head(landmarks.astype(np.float64), read_mesh(job.neutral)).mesh
    low, high = head.vertices.min(axis=0), head.vertices.max(axis=0)
    centred = (head.vertices - (low + high) / 2) / (high - low).max()
    turned = centred[:, [0, 2, 1]] * np.array([1, -1, 1], dtype=np.float32)
    return replace(head, vertices=turned)


BACKEND = PriorBackend(
    name="template",
    run=generate_template,
    instead="set prior.generate.source to provided and give a mesh in the sample sheet",
)
