"""Which face of the base motion's mesh carries a point, tabulated over space.

Stage I's surface has other vertices at every step, and a captured step cannot wait for a search on
the host. Letters: N points, X, Y, Z cells.
"""

from __future__ import annotations

from typing import Self

import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from eavatar.avatar.base_motion import ZERO_REACH, Attachment, BaseMotion
from eavatar.threads import count_threads

# 3 mm: displacements are off by 0.2 mm (root mean square) where the mesh moves by 30.
CELL = 0.03


class AttachmentTable(nn.Module):
    """The face with the nearest centre, for each cubic cell about a mesh.

    Args:
        faces: (X · Y · Z,) of the cells, z the fastest.
        lower: (3,) corner of the first cell, canonical.
        counts: (3,) X, Y, Z.
    """

    faces: Tensor
    lower: Tensor
    counts: Tensor

    def __init__(self, faces: Tensor, lower: Tensor, counts: Tensor):
        super().__init__()
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    @classmethod
    def of(cls, base: BaseMotion) -> Self:
        """The table for a mesh on the CPU."""
        lower = base.vertices.amin(dim=0) - ZERO_REACH
        upper = base.vertices.amax(dim=0) + ZERO_REACH
        counts = ((upper - lower) / CELL).ceil().long()
        axes = [
            start + CELL * (torch.arange(count) + 0.5)
            for start, count in zip(lower, counts.tolist(), strict=True)
        ]
        tree = cKDTree(base.vertices[base.faces].mean(dim=1).numpy())
        # Farther away any face will do: all have no weight there.
        _, found = tree.query(
            torch.cartesian_prod(*axes).numpy(),
            distance_upper_bound=2 * ZERO_REACH,
            workers=count_threads(),
        )
        faces = torch.from_numpy(found).clamp(max=len(base.faces) - 1)
        return cls(faces.to(torch.int32), lower, counts)

    @torch.no_grad()
    def attach(self, base: BaseMotion, points: Tensor) -> Attachment:
        """As `BaseMotion.attach`, about as near, where no shape depends on values."""
        cells = ((points - self.lower) / CELL).long()
        x, y, z = torch.minimum(cells.clamp(min=0), self.counts - 1).unbind(dim=1)
        numbers = (x * self.counts[1] + y) * self.counts[2] + z
        return base.attach_to(points, self.faces.index_select(0, numbers).long())
