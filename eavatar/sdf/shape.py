"""Centre and size of prior and prediction over the region that both have (Eq. 17).

Canonical units. Letters: N points, M faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from eavatar.io import Mesh
from eavatar.meshes import sample_surface
from eavatar.sdf.field import LOWER, UPPER
from eavatar.training import losses
from eavatar.transforms import Similarity, fit_similarity

ROWS, COLUMNS = 24, 48  # cells of directions: 1.3 cm on a head
SAMPLES = 50_000  # of the prior, some 40 in a cell
COVERED = 0.4  # of the mean number of samples, from which a cell counts as covered
PAIRS = 2000  # of prior and prediction in an alignment
ITERATIONS = 10


@dataclass(frozen=True)
class Region:
    """Where prior and prediction both have a surface.

    Above the chin, as below it they end in different places; in the box, beyond which there is no
    prediction; and in the directions in which no part of the prior is missing.

    Attributes:
        lower: (3,) corner of the box above the chin.
        upper: (3,) the opposite one.
        centre: (3,) from which the directions are.
        covered: (ROWS · COLUMNS,) 1 where the prior has a surface, else 0.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor
    covered: Tensor

    @classmethod
    def of(cls, samples: Tensor, floor: float) -> Self:
        """The region of a prior with evenly spread samples (N, 3), above the height of the chin."""
        lower, upper = samples.new_tensor(LOWER), samples.new_tensor(UPPER)
        lower[1] = floor
        above = samples[samples[:, 1] > floor]
        centre = (above.amin(dim=0) + above.amax(dim=0)) / 2
        counts = _cells(above - centre).bincount(minlength=ROWS * COLUMNS)
        covered = counts >= COVERED * counts.sum() / len(counts)
        return cls(lower, upper, centre, covered.to(samples.dtype))

    def contains(self, points: Tensor) -> Tensor:
        """(N,) 1 for the points (N, 3) of the region, else 0."""
        inside = ((points > self.lower) & (points < self.upper)).all(dim=1)
        return inside * self.covered.index_select(0, _cells(points - self.centre))

    def measure(self, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Centre (3,) and size () of a surface, see `losses.centre_and_size`.

        Args:
            vertices: (V, 3).
            faces: (M, 3).
        """
        centroids, areas = losses.centroids_and_areas(vertices, faces)
        return losses.centre_and_size(centroids, areas * self.contains(centroids))


@dataclass(frozen=True)
class Shape:
    """The prior as Eq. 17 sees it.

    Attributes:
        centre: (3,).
        size: () mean distance of the surface to the centre.
        region: that both are of.
        aligned: centre and size as `align_prior` left them.
        samples: (PAIRS, 3) of the prior in the region, likewise.
    """

    centre: Tensor
    size: Tensor
    region: Region
    aligned: tuple[Tensor, Tensor]
    samples: Tensor

    @classmethod
    def of(cls, prior: Mesh, floor: float, device: torch.device, seed: int) -> Self:
        """The shape of an aligned prior above the height of the chin."""
        samples = torch.from_numpy(sample_surface(prior, SAMPLES, seed)[0]).float().to(device)
        region = Region.of(samples, floor)
        vertices, faces = (torch.from_numpy(x).to(device) for x in (prior.vertices, prior.faces))
        centre, size = region.measure(vertices, faces)
        within = samples[region.contains(samples) > 0][:PAIRS]
        return cls(centre, size, region, (centre.clone(), size.clone()), within)

    def realign(self, vertices: Tensor) -> None:
        """Align the prior with the present prediction (V, 3), as the paper's ICP does, in place.

        Always from where `align_prior` left it.
        """
        prior, prediction = (x.double().cpu().numpy() for x in (self.samples, vertices))
        tree, found = cKDTree(prediction), Similarity(1.0, np.eye(3), np.zeros(3))
        for _ in range(ITERATIONS):
            found = fit_similarity(prior, prediction[tree.query(found.apply(prior))[1]])
        centre, size = self.aligned
        moved = found.apply(centre.double().cpu().numpy()[None])[0]
        self.centre.copy_(torch.from_numpy(moved))
        self.size.copy_(found.scale * size)


def _cells(offsets: Tensor) -> Tensor:
    """The cell (N,) of the direction of each offset (N, 3); all cells are equally large."""
    x, y, z = normalize(offsets, dim=1).unbind(dim=1)
    row = ((y + 1) / 2 * ROWS).long().clamp(0, ROWS - 1)
    column = ((torch.atan2(x, z) / torch.pi + 1) / 2 * COLUMNS).long().clamp(0, COLUMNS - 1)
    return row * COLUMNS + column
