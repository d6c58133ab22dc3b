"""Control Gaussians: large expression displacements are handed on to the neighbours (Eq. 9–13).

The paper leaves open what happens to a neighbour's own displacement and what its radius and σ are;
`MODES` holds the three readings. A control keeps its own displacement, and all controls are taken
as they were before anything is handed on, so that the order of the points does not matter.
Letters: N Gaussians, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Which points may be led by which others (Eq. 11), fixed until the set of Gaussians changes.

    Attributes:
        points: (P,) the point that may be led.
        leaders: (P,) a neighbour of it, never the point itself.
        squared: (P,) squared canonical distance of the two.
    """

    points: Tensor
    leaders: Tensor
    squared: Tensor


def neighbour_pairs(positions: Tensor, radius: float, most: int) -> Pairs:
    """All pairs closer than a radius, at most so many nearest neighbours for each point (Eq. 11).

    Args:
        positions: (N, 3) canonical. radius: canonical units. most: neighbours kept per point.
    """
    points = positions.detach().cpu().double().numpy()
    most = min(most, len(points) - 1)
    tree = cKDTree(points)
    # One more than wanted, as the point finds itself; duplicates may come before it.
    distances, found = tree.query(points, k=most + 1, distance_upper_bound=radius, workers=-1)
    itself = np.arange(len(points))[:, None]
    rows, columns = np.nonzero(np.isfinite(distances) & (found != itself))
    device = positions.device
    return Pairs(
        torch.from_numpy(rows).to(device),
        torch.from_numpy(found[rows, columns]).to(device),
        torch.from_numpy(distances[rows, columns] ** 2).float().to(device),
    )


def control_weights(pairs: Pairs, controls: Tensor, sigma: float) -> tuple[Pairs, Tensor, Tensor]:
    """Gaussian-kernel weights, normalised over the controls of each point (Eq. 13).

    Args:
        pairs: from `neighbour_pairs`. controls: (N,) bool. sigma: σ, canonical units.
    Returns:
        The Q pairs of a control and a point that is none; their weights (Q,), which sum to one at
        each point; the squared distance (N,) of each point to its nearest control, infinite where
        there is none.
    """
    active = (controls[pairs.leaders] & ~controls[pairs.points]).nonzero()[:, 0]
    chosen = Pairs(pairs.points[active], pairs.leaders[active], pairs.squared[active])
    nearest = chosen.squared.new_full((len(controls),), torch.inf)
    nearest = nearest.scatter_reduce(0, chosen.points, chosen.squared, "amin")
    # Relative to the nearest control no point's weights vanish together, however small σ is.
    kernel = torch.exp((nearest[chosen.points] - chosen.squared) / sigma**2)
    total = kernel.new_zeros(len(controls)).index_add(0, chosen.points, kernel)
    return chosen, kernel / total[chosen.points], nearest


def _replace(own: Tensor, led: Tensor, squared: Tensor, radius: float) -> Tensor:
    return led


def _add(own: Tensor, led: Tensor, squared: Tensor, radius: float) -> Tensor:
    return own + led


def _blend(own: Tensor, led: Tensor, squared: Tensor, radius: float) -> Tensor:
    towards = (2 - 2 * squared.sqrt() / radius).clamp(0, 1)
    share = (towards * towards * (3 - 2 * towards))[:, None]
    return own + share * (led - own)


MODES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "replace": _replace,
    "add": _add,
    "blend": _blend,
}


def propagate(
    displacements: Tensor, controls: Tensor, pairs: Pairs, radius: float, sigma: float, mode: str
) -> Tensor:
    """Displacements (N, 3) after the controls have led their neighbours (Eq. 12).

    Every point that is no control and has controls within the radius gets their weighted mean
    displacement: instead of its own (``replace``, Eq. 12 to the letter, which tears the surface at
    the radius), on top of its own (``add``), or blended with its own (``blend``: all of it up to
    half the radius from the nearest control, falling smoothly to none at the radius).

    Args:
        displacements: (N, 3) of all points, canonical; gradients flow through them.
        controls: (N,) bool (Eq. 10). pairs: from `neighbour_pairs` with the same radius.
        radius, sigma: r of Eq. 11 and σ of Eq. 13, canonical units. mode: a key of `MODES`.
    """
    chosen, weights, nearest = control_weights(pairs, controls, sigma)
    if len(weights) == 0:
        return displacements
    contributions = weights[:, None] * displacements[chosen.leaders]
    mean = torch.zeros_like(displacements).index_add(0, chosen.points, contributions)
    led = torch.isfinite(nearest).nonzero()[:, 0]
    result = MODES[mode](displacements[led], mean[led], nearest[led], radius)
    return displacements.index_copy(0, led, result)
