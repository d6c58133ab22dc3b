"""Reprojection of landmarks and their robust triangulation, batched over timesteps.

Letters: T timesteps, C cameras, L landmarks. ``projections`` are (C, 3, 4), world metres to
homogeneous pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS = 10
FIRST_WIDENING = 16.0  # of the outlier distance in the first round; it then shrinks to 1


def reproject(projections: Array, world: Array) -> tuple[Array, Array]:
    """World points (T, L, 3) to pixels (T, C, L, 2) and their derivative (T, C, L, 2, 3)."""
    homogeneous = np.einsum("cij,tlj->tcli", projections[..., :3], world)
    homogeneous += projections[:, None, :, 3]
    depth = homogeneous[..., 2, None]
    pixels = homogeneous[..., :2] / depth
    rows = projections[:, None, :2, :3] - pixels[..., None] * projections[:, None, 2:, :3]
    return pixels, rows / depth[..., None]


def geman_mcclure(squared: Array, distance: float) -> tuple[Array, Array]:
    """Robust cost of squared residuals and its derivative to them (Geman and McClure 1987).

    The cost is the squared residual where that is small against ``distance``², and never more
    than ``distance``²; the derivative serves as the weight of reweighted least squares.
    """
    share = 1 / (1 + squared / distance**2)
    return squared * share, share**2


def triangulate(
    projections: Array, points: Array, confidence: Array, distance: float
) -> tuple[Array, Array]:
    """Confidence-weighted linear triangulation, reweighted to leave outliers out.

    The robust scale starts wide and narrows to ``distance``, so that a gross outlier in one
    camera does not decide which of the others count.

    Args:
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L), 0 = not seen.
        distance: pixels at which a detection counts a quarter.

    Returns:
        (T, L, 3) metres and (T, L) the sum of the weights; both zero with fewer than two views.
    """
    rows = points[..., None] * projections[:, None, 2:] - projections[:, None, :2]
    seen = (confidence > 0).sum(axis=1) >= 2
    weights = confidence * seen[:, None]
    used = weights
    for widening in np.geomspace(FIRST_WIDENING, 1, ROUNDS):
        matrix = np.einsum("tcl,tclki,tclkj->tlij", used, rows[..., :3], rows[..., :3])
        vector = np.einsum("tcl,tclki,tclk->tli", used, rows[..., :3], rows[..., 3])
        matrix += np.eye(3) * np.where(seen, 0.0, 1.0)[..., None, None]
        world = -np.linalg.solve(matrix, vector[..., None])[..., 0]
        pixels, _ = reproject(projections, world)
        _, share = geman_mcclure(((pixels - points) ** 2).sum(-1), widening * distance)
        depth = np.einsum("ci,tli->tcl", projections[:, 2, :3], world)
        depth += projections[:, 2, 3, None]
        # the linear residual is the pixel distance times the depth
        used = weights * share / depth**2
    return world, (weights * share).sum(axis=1)
