"""Reprojection of landmarks and their robust triangulation.

Letters: T timesteps, C cameras, L landmarks. ``projections`` are (C, 3, 4), world metres to
homogeneous pixels.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from eavatar.arrays import Float64

REWEIGHTINGS = 5  # after the consensus
MIN_DEPTH = 1e-3  # metres; no camera sees a face closer
RIDGE = 1e-12  # relative, of the information; keeps views along one ray solvable


def project_points(projections: Float64, world: Float64) -> tuple[Float64, Float64]:
    """World points (T, L, 3) to pixels (T, C, L, 2), infinite at depth 0; depths (T, C, L), m."""
    homogeneous = np.einsum("cij,tlj->tcli", projections[..., :3], world, optimize=True)
    homogeneous += projections[:, None, :, 3]
    depth = homogeneous[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[..., :2] / depth[..., None], depth


def project_with_jacobian(projections: Float64, world: Float64) -> tuple[Float64, Float64]:
    """World points (T, L, 3) to pixels (T, C, L, 2) and their derivative (T, C, L, 2, 3)."""
    pixels, depth = project_points(projections, world)
    rows = projections[:, None, :2, :3] - pixels[..., None] * projections[:, None, 2:, :3]
    return pixels, rows / depth[..., None, None]


def geman_mcclure(squared: Float64, distance: float) -> tuple[Float64, Float64]:
    """Robust cost of squared residuals and its derivative to them (Geman and McClure 1987).

    The cost is the squared residual where that is small against ``distance``², and never more
    than ``distance``²; the derivative serves as the weight of reweighted least squares.

    Args:
        squared: squared residuals of any shape.
        distance: residual at which the weight is a quarter.

    Returns:
        cost and weight, in the shape of ``squared``.
    """
    ratio = 1 / (1 + squared / distance**2)
    return squared * ratio, ratio**2


def triangulate(
    projections: Float64, points: Float64, confidence: Float64, distance: float
) -> tuple[Float64, Float64]:
    """The point that most views agree on, refined by reweighted least squares over all of them.

    Args:
        projections: (C, 3, 4).
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
            world[t] = _find_consensus(projections[used], *views, distance)
    for _ in range(REWEIGHTINGS):
        robust, depth = _robust_weights(projections, world, points, distance)
        # Distances to the planes grow with the depth.
        used_weights = weights * robust / np.maximum(depth, MIN_DEPTH) ** 2
        matrix = np.einsum("tcl,tclij->tlij", used_weights, matrices)
        world = intersect_planes(matrix, np.einsum("tcl,tcli->tli", used_weights, vectors))
    robust, _ = _robust_weights(projections, world, points, distance)
    return world, (weights * robust).sum(axis=1)


def _robust_weights(
    projections: Float64, world: Float64, points: Float64, distance: float
) -> tuple[Float64, Float64]:
    """Robust weights (T, C, L) of detections, zero behind the camera, and depths (T, C, L)."""
    pixels, depth = project_points(projections, world)
    _, weights = geman_mcclure(((pixels - points) ** 2).sum(-1), distance)
    return np.where(depth > 0, weights, 0.0), depth


def view_planes(projections: Float64, points: Float64) -> tuple[Float64, Float64]:
    """Squared distance of a world point x to the two planes of each view's ray.

    Args:
        projections: (C, 3, 4).
        points: (T, C, L, 2) pixels.

    Returns:
        (T, C, L, 3, 3) ``M`` and (T, C, L, 3) ``v`` of xᵀ M x + 2 vᵀ x + constant.
    """
    planes = points[..., None] * projections[:, None, 2:] - projections[:, None, :2]
    planes /= np.linalg.norm(projections[:, None, :2, :3], axis=-1, keepdims=True)
    matrices = np.einsum("tclki,tclkj->tclij", planes[..., :3], planes[..., :3])
    return matrices, np.einsum("tclki,tclk->tcli", planes[..., :3], planes[..., 3])


def intersect_planes(matrix: Float64, vector: Float64) -> Float64:
    """The points (..., 3) nearest to the planes summed in (..., 3, 3) and (..., 3)."""
    trace = np.einsum("...ii->...", matrix)
    ridge = np.where(trace > 0, RIDGE * trace, 1.0)[..., None, None] * np.eye(3)
    solved = np.linalg.solve(matrix + ridge, vector[..., None])[..., 0]
    return -solved.astype(np.float64, copy=False)


def _find_consensus(
    projections: Float64,
    matrices: Float64,
    vectors: Float64,
    points: Float64,
    confidence: Float64,
    distance: float,
) -> Float64:
    """Of the points (L, 3) that pairs of views determine, those with the least robust cost.

    All pairs are tried: with 30 % outliers half of them are clean, so none of thousands of
    landmarks depends on random sampling.

    Args:
        projections: (C, 3, 4) of C ≥ 2 cameras.
        matrices: (C, L, 3, 3) of `view_planes`.
        vectors: (C, L, 3) of `view_planes`.
        points: (C, L, 2) pixels.
        confidence: (C, L), 0 = not seen.
        distance: of `triangulate`.
    """
    first, second = np.array(list(combinations(range(len(points)), 2))).T
    candidates = intersect_planes(
        matrices[first] + matrices[second], vectors[first] + vectors[second]
    )
    pixels, depth = project_points(projections, candidates)
    squared = ((pixels - points) ** 2).sum(-1)
    robust, _ = geman_mcclure(squared, distance)
    cost = np.einsum("cl,pcl->pl", confidence, np.where(depth > 0, robust, distance**2))
    cost[(confidence[first] == 0) | (confidence[second] == 0)] = np.inf
    best: Float64 = np.take_along_axis(candidates, cost.argmin(axis=0)[None, :, None], axis=0)[0]
    return best
