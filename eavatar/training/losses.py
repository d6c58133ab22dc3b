"""The loss terms of both stages as pure, unweighted functions (Eq. 17–19)."""

from __future__ import annotations

import torch
from torch import Tensor


def rgb_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute colour difference over the weighted pixels (L_rgb of Eq. 18 and 19), a scalar.

    Args:
        prediction: (..., H, W, 3) in [0, 1].
        target: likewise.
        weight: (..., H, W), 1 where the pixel counts and 0 in the padding of the crop.
    """
    difference = (prediction - target).abs().mean(dim=-1)
    return (difference * weight).sum() / weight.sum().clamp(min=1)


def silhouette_loss(alpha: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """1 - IoU of soft silhouettes, the mean over views (L_sil of Eq. 18), a scalar.

    Args:
        alpha: (..., H, W) in [0, 1].
        mask: likewise.
        weight: (..., H, W), 1 where the pixel counts.
    """
    common = alpha * mask
    intersection = (common * weight).sum(dim=(-2, -1))
    union = ((alpha + mask - common) * weight).sum(dim=(-2, -1))
    return (1 - intersection / union.clamp(min=1)).mean()


def landmark_loss(sdf: Tensor) -> Tensor:
    """Mean distance of the surface to the landmarks (L_lmk of Eq. 18), a scalar.

    Args:
        sdf: (L,) signed distance at the neutral landmarks, canonical units.
    """
    return sdf.abs().mean()


def deformation_loss(landmarks: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference per coordinate, canonical units squared (GHA's L_def), a scalar.

    Args:
        landmarks: (..., L, 3) neutral landmarks moved by the expression, canonical.
        target: (..., L, 3) tracked landmarks of the timestep, canonical.
    """
    return (landmarks - target).square().mean()


def offset_loss(raw_deformation: Tensor, counted: Tensor) -> Tensor:
    """Mean squared length of a raw displacement, before scaling (L_offset of Eq. 18), a scalar.

    Args:
        raw_deformation: (B, N, 3) in (-1, 1), from one of the deformation networks.
        counted: (N,) bool, the points that the mean is over.
    """
    squared = raw_deformation.square().sum(dim=-1).mean(dim=0)
    return (squared * counted).sum() / counted.sum().clamp(min=1)


def laplacian_loss(vertices: Tensor, faces: Tensor) -> Tensor:
    """Mean squared distance of a vertex to the mean of its neighbours (L_lap of Eq. 18), a scalar.

    The weight of 100 in Eq. 18 goes with metres, the unit of the posed mesh.

    Args:
        vertices: (..., V, 3).
        faces: (M, 3) of a mesh whose edges have a face on either side; an edge at a border counts
            once rather than twice. A vertex whose faces are all that vertex three times counts as
            unused.
    """
    rows = vertices.movedim(-2, 0).flatten(1)  # all meshes share the faces
    starts, ends = faces.flatten(), faces.roll(-1, dims=1).flatten()
    total = torch.zeros_like(rows)
    total = total.index_add(0, starts, rows.index_select(0, ends))
    total = total.index_add(0, ends, rows.index_select(0, starts))
    count = total.new_zeros(len(rows)).index_add(0, starts, (starts != ends).to(total.dtype))
    difference = total / (2 * count).clamp(min=1)[:, None] - rows
    used = (count > 0).to(rows.dtype)
    squared = difference.square().sum(dim=1) / (rows.shape[1] // 3)
    return (squared * used).sum() / used.sum().clamp(min=1)


def prior_distance_loss(errors: Tensor, weights: Tensor, tolerance: float) -> Tensor:
    """Weighted mean of squared errors, robust, canonical units squared, a scalar.

    Geman and McClure's function: the square of small errors, and never more than the square of
    the tolerance, so that where the images insist on another surface the prior gives way.

    Args:
        errors: (N, D) of the field at points about the prior, canonical units.
        weights: (N,).
        tolerance: error from which the pull decreases, canonical units.
    """
    squared = errors.square().sum(dim=1)
    return (weights * squared / (1 + squared / tolerance**2)).mean()


def centroids_and_areas(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids (M, 3) and areas (M,) of the faces (M, 3) of a mesh with vertices (V, 3)."""
    corners = vertices.index_select(0, faces.flatten()).view(-1, 3, 3)
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return corners.mean(dim=1), torch.linalg.vector_norm(across, dim=1) / 2


def centre_and_size(centroids: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (3,) of a surface and mean distance () of the surface to it.

    Eq. 17 takes means over vertices; these are means over the area, so that they do not depend
    on the triangulation.

    Args:
        centroids: (M, 3) of its faces.
        areas: (M,), zero for faces that are left out.
    """
    weights = (areas / areas.sum().clamp(min=1e-9))[:, None]
    centre = (weights * centroids).sum(dim=0)
    distances = torch.linalg.vector_norm(centroids - centre, dim=1, keepdim=True)
    return centre, (weights * distances).sum()


def alignment_loss(
    centre: Tensor, size: Tensor, other_centre: Tensor, other_size: Tensor
) -> Tensor:
    """``|c - ĉ|² + (s - ŝ)²`` of Eq. 17, canonical units squared, a scalar.

    Args:
        centre: (3,) of the predicted surface.
        size: () of the predicted surface.
        other_centre: of the prior.
        other_size: of the prior.
    """
    return (centre - other_centre).square().sum() + (size - other_size).square()
