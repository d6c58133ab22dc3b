"""Control Gaussians: large expression displacements are propagated to neighbours (Eq. 9–13).

The paper leaves open what happens to a neighbour's own displacement and what its radius and σ are;
`MODES` holds the three readings. A control keeps its own displacement, and all controls are taken
as they were before the propagation, so that the order of the points does not matter.
Letters: N Gaussians, K neighbours of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from eavatar.threads import count_threads


@dataclass(frozen=True)
class Neighbours:
    """The neighbour graph (Eq. 11), fixed until the set of Gaussians changes.

    Attributes:
        indices: (N, K) the neighbours of each point, never the point itself.
        squared: (N, K) squared canonical distance to each, infinite where there are fewer than K.
    """

    indices: Tensor
    squared: Tensor


def find_neighbours(positions: Tensor, radius: float, most: int) -> Neighbours:
    """All neighbours within a radius, at most so many nearest ones for each point (Eq. 11).

    Args:
        positions: (N, 3) canonical.
        radius: canonical units.
        most: neighbours kept per point.
    """
    points = positions.detach().cpu().double().numpy()
    most = min(most, len(points) - 1)
    tree = cKDTree(points)
    # One more than wanted, as the point finds itself; duplicates may come before it.
    distances, found = tree.query(
        points, k=most + 1, distance_upper_bound=radius, workers=count_threads()
    )
    itself = np.arange(len(points))[:, None]
    distances[found == itself] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")
    order = order[:, : int(np.isfinite(distances).sum(axis=1).max())]
    distances = np.take_along_axis(distances, order, axis=1)
    indices = np.take_along_axis(found, order, axis=1)
    indices[~np.isfinite(distances)] = 0
    device = positions.device
    return Neighbours(
        torch.from_numpy(indices).to(device),
        torch.from_numpy(distances**2).float().to(device),
    )


def control_weights(squared: Tensor, nearest: Tensor, sigma: float) -> Tensor:
    """Gaussian-kernel weights (M, K), normalised over the controls of each point (Eq. 13).

    Args:
        squared: (M, K) squared distances to the controls, infinite for all other neighbours.
        nearest: (M,) the smallest of each row.
        sigma: σ, canonical units.
    """
    # Relative to the nearest control no point's weights vanish together, however small σ is.
    kernel = torch.exp((nearest.nan_to_num(posinf=0.0)[:, None] - squared) / sigma**2)
    return kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-30)


def _replace(own: Tensor, propagated: Tensor, squared: Tensor, radius: float) -> Tensor:
    return propagated


def _add(own: Tensor, propagated: Tensor, squared: Tensor, radius: float) -> Tensor:
    return own + propagated


def _blend(own: Tensor, propagated: Tensor, squared: Tensor, radius: float) -> Tensor:
    towards = (2 - 2 * squared.sqrt() / radius).clamp(0, 1)
    weight = (towards * towards * (3 - 2 * towards))[:, None]
    return own + weight * (propagated - own)


MODES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "replace": _replace,
    "add": _add,
    "blend": _blend,
}


def propagate(
    displacements: Tensor,
    controls: Tensor,
    neighbours: Neighbours,
    radius: float,
    sigma: float,
    mode: str,
) -> Tensor:
    """Displacements (N, 3) after those of the controls are propagated (Eq. 12).

    Every point that is no control and has controls within the radius gets their weighted mean
    displacement: instead of its own (``replace``, Eq. 12 to the letter, which tears the surface at
    the radius), on top of its own (``add``), or blended with its own (``blend``: all of it up to
    half the radius from the nearest control, falling smoothly to none at the radius).

    Args:
        displacements: (N, 3) of all points, canonical; gradients flow through them.
        controls: (N,) bool (Eq. 10).
        neighbours: from `find_neighbours`, same radius.
        radius: r of Eq. 11, canonical units.
        sigma: σ of Eq. 13, canonical units.
        mode: a key of `MODES`.
    """
    if displacements.is_cuda:  # no shape may depend on values, see `training.graphs`
        return propagate_to_all(displacements, controls, neighbours, radius, sigma, mode)
    active = controls[neighbours.indices] & neighbours.squared.isfinite()
    rows = (active.any(dim=1) & ~controls).nonzero()[:, 0]
    some = Neighbours(neighbours.indices[rows], neighbours.squared[rows])
    mean, nearest = _mean_of_controls(displacements, controls, some, sigma)
    result = MODES[mode](displacements.index_select(0, rows), mean, nearest, radius)
    return displacements.index_copy(0, rows, result)


def propagate_to_all(
    displacements: Tensor,
    controls: Tensor,
    neighbours: Neighbours,
    radius: float,
    sigma: float,
    mode: str,
) -> Tensor:
    """`propagate` with the same work for every point, whether it has controls around it or not."""
    mean, nearest = _mean_of_controls(displacements, controls, neighbours, sigma)
    result = MODES[mode](displacements, mean, nearest, radius)
    follows = nearest.isfinite() & ~controls
    return torch.where(follows[:, None], result, displacements)


def _mean_of_controls(
    displacements: Tensor, controls: Tensor, neighbours: Neighbours, sigma: float
) -> tuple[Tensor, Tensor]:
    """The weighted mean displacement (M, 3) of the controls around M points, and the squared
    distance (M,) to the nearest of them, infinite where there is none."""
    indices = neighbours.indices
    squared = torch.where(controls[indices], neighbours.squared, torch.inf)
    nearest = nn.functional.pad(squared, (0, 1), value=torch.inf).amin(dim=1)
    weights = control_weights(squared, nearest, sigma)
    # Not displacements[indices], whose gradient is sorted by index first.
    theirs = displacements.index_select(0, indices.flatten()).view(*indices.shape, 3)
    return (weights[..., None] * theirs).sum(dim=1), nearest
