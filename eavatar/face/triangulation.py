"""Reprojection of landmarks and their robust triangulation.

Letters: T timesteps, C cameras, L landmarks. ``projections`` are (C, 3, 4), world metres to
homogeneous pixels.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS = 5  # of reweighting after the consensus
NEAREST = 1e-3  # metres; no camera sees a face closer
SOFTEST = 1e-12  # share of the information that keeps views along one ray solvable


def project(projections: Array, world: Array) -> tuple[Array, Array]:
    """World points (T, L, 3) to pixels (T, C, L, 2) and depths (T, C, L), metres."""
    homogeneous = np.einsum("cij,tlj->tcli", projections[..., :3], world, optimize=True)
    homogeneous += projections[:, None, :, 3]
    depth = homogeneous[..., 2]
    return homogeneous[..., :2] / depth[..., None], depth


def reproject(projections: Array, world: Array) -> tuple[Array, Array]:
    """World points (T, L, 3) to pixels (T, C, L, 2) and their derivative (T, C, L, 2, 3)."""
    pixels, depth = project(projections, world)
    rows = projections[:, None, :2, :3] - pixels[..., None] * projections[:, None, 2:, :3]
    return pixels, rows / depth[..., None, None]


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
    """The point that most views agree on, refined by reweighted least squares over all of them.

    Args:
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L), 0 = not seen.
        distance: pixels at which a detection counts a quarter.

    Returns:
        (T, L, 3) metres and (T, L) the sum of the weights; both zero with fewer than two views.
    """
    matrices, vectors = view_planes(projections, points)
    seen = (confidence > 0).sum(axis=1) >= 2
    weights = confidence * seen[:, None]
    world = np.zeros((len(points), points.shape[2], 3))
    for t in range(len(points)):
        used = np.flatnonzero((weights[t] > 0).any(axis=1))
        if len(used):
            views = matrices[t, used], vectors[t, used], points[t, used], weights[t, used]
            world[t] = consensus(projections[used], *views, distance)
    for _ in range(ROUNDS):
        share, depth = agreement(projections, world, points, distance)
        used_weights = (
            weights * share / np.maximum(depth, NEAREST) ** 2
        )  # plane distances grow with the depth
        matrix = np.einsum("tcl,tclij->tlij", used_weights, matrices)
        world = intersect(matrix, np.einsum("tcl,tcli->tli", used_weights, vectors))
    share, _ = agreement(projections, world, points, distance)
    return world, (weights * share).sum(axis=1)


def agreement(
    projections: Array, world: Array, points: Array, distance: float
) -> tuple[Array, Array]:
    """Robust weights (T, C, L) of detections, zero behind the camera, and depths (T, C, L)."""
    pixels, depth = project(projections, world)
    _, share = geman_mcclure(((pixels - points) ** 2).sum(-1), distance)
    return np.where(depth > 0, share, 0.0), depth


def view_planes(projections: Array, points: Array) -> tuple[Array, Array]:
    """Squared distance of a world point x to the two planes of each view's ray.

    Returns:
        (T, C, L, 3, 3) ``M`` and (T, C, L, 3) ``v`` of xᵀ M x + 2 vᵀ x + constant.
    """
    planes = points[..., None] * projections[:, None, 2:] - projections[:, None, :2]
    planes /= np.linalg.norm(projections[:, None, :2, :3], axis=-1, keepdims=True)
    matrices = np.einsum("tclki,tclkj->tclij", planes[..., :3], planes[..., :3])
    return matrices, np.einsum("tclki,tclk->tcli", planes[..., :3], planes[..., 3])


def intersect(matrix: Array, vector: Array) -> Array:
    """The points (..., 3) nearest to the planes summed in (..., 3, 3) and (..., 3)."""
    trace = np.einsum("...ii->...", matrix)
    soft = np.where(trace > 0, SOFTEST * trace, 1.0)[..., None, None] * np.eye(3)
    solved = np.linalg.solve(matrix + soft, vector[..., None])[..., 0]
    return -solved.astype(np.float64, copy=False)


def consensus(
    projections: Array,
    matrices: Array,
    vectors: Array,
    points: Array,
    confidence: Array,
    distance: float,
) -> Array:
    """Of the points (L, 3) that pairs of views determine, those with the least robust cost.

    All pairs are tried: with 30 % outliers half of them are clean, so none of thousands of
    landmarks depends on a lucky draw.

    Args:
        matrices, vectors: of `view_planes`, (C, L, 3, 3) and (C, L, 3), for the C ≥ 2 cameras.
        points: (C, L, 2). confidence: (C, L).
    """
    first, second = np.array(list(combinations(range(len(points)), 2))).T
    candidates = intersect(matrices[first] + matrices[second], vectors[first] + vectors[second])
    pixels, depth = project(projections, candidates)
    squared = ((pixels - points) ** 2).sum(-1)
    robust, _ = geman_mcclure(squared, distance)
    cost = np.einsum("cl,pcl->pl", confidence, np.where(depth > 0, robust, distance**2))
    cost[(confidence[first] == 0) | (confidence[second] == 0)] = np.inf
    best: Array = np.take_along_axis(candidates, cost.argmin(axis=0)[None, :, None], axis=0)[0]
    return best
