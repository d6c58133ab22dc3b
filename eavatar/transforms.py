"""Rotations, similarity transforms and their closed-form estimation.

Quaternions are ``(w, x, y, z)``. Points are rows: a similarity maps ``x`` to
``scale · R x + t``. Functions of tensors work on any batch shape and are differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eavatar.arrays import Float64

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """``x ↦ scale · rotation @ x + translation``.

    Attributes:
        scale: positive factor.
        rotation: (3, 3), determinant +1.
        translation: (3,), in the unit of the target space.
    """

    scale: float
    rotation: Float64
    translation: Float64

    def apply(self, points: Float64) -> Float64:
        """Points (..., 3) of the source space to the target space."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self) -> Similarity:
        """The transform from the target space back to the source space."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -rotation @ self.translation / self.scale)

    def compose(self, first: Similarity) -> Similarity:
        """The transform that applies ``first`` and then this one."""
        return Similarity(
            self.scale * first.scale, self.rotation @ first.rotation, self.apply(first.translation)
        )

    @property
    def matrix(self) -> Float64:
        """(4, 4) homogeneous matrix."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix


def fit_similarity(
    source: Float64, target: Float64, weights: Float64 | None = None, with_scale: bool = True
) -> Similarity:
    """Least-squares similarity between corresponding points (Umeyama 1991).

    Args:
        source: (N, 3), N ≥ 3, not all on a line.
        target: (N, 3).
        weights: (N,) non-negative; all one if not given.
        with_scale: estimate the scale; otherwise it is one.
    """
    weights = np.ones(len(source)) if weights is None else weights
    weights = weights / weights.sum()
    source_mean, target_mean = weights @ source, weights @ target
    source_centred, target_centred = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd((weights[:, None] * target_centred).T @ source_centred)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    variance = weights @ (source_centred**2).sum(axis=1)
    scale = float(singular @ sign / variance) if with_scale else 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def cross_matrices(vectors: Float64) -> Float64:
    """Matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)


def left_jacobian(rotation: Float64) -> Float64:
    """(T, 3, 3) ``J`` of SO(3) with ``exp(w + dw) ≈ exp(J dw) exp(w)`` for axis-angles w (T, 3)."""
    angle = np.linalg.norm(rotation, axis=1)[:, None, None]
    safe = np.maximum(angle, 1e-4)
    first = np.where(angle < 1e-4, 0.5, (1 - np.cos(safe)) / safe**2)
    second = np.where(angle < 1e-4, 1 / 6, (safe - np.sin(safe)) / safe**3)
    cross = cross_matrices(rotation)
    return np.eye(3) + first * cross + second * (cross @ cross)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rotation vectors (..., 3), radians, to matrices (..., 3, 3); differentiable at zero too."""
    import torch

    squared = (axis_angle**2).sum(-1)[..., None, None]
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    # The square of the cross product's matrix, without a product of matrices: see `rotate`.
    outer = axis_angle[..., :, None] * axis_angle[..., None, :]
    matrices: Tensor = identity + first * skew + second * (outer - squared * identity)
    return matrices


def rotate(points: Tensor, matrices: Tensor) -> Tensor:
    """Points (..., N, 3) turned by matrices (..., 3, 3): ``R x``.

    In full precision also where products of float32 matrices are allowed to use TF32, on CUDA.
    """
    if not points.is_cuda:
        return points @ matrices.mT
    return (points[..., None, :] * matrices[..., None, :, :]).sum(dim=-1)


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    """Rotation vectors (..., 3), radians, to unit quaternions (..., 4), wxyz."""
    import torch

    squared = (axis_angle**2).sum(-1, keepdim=True)
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    real = torch.where(small, 1 - squared / 8, torch.cos(angle / 2))
    factor = torch.where(small, 0.5 - squared / 48, torch.sin(angle / 2) / angle)
    return torch.cat([real, factor * axis_angle], dim=-1)


def multiply_quaternions(first: Tensor, second: Tensor) -> Tensor:
    """Hamilton product (..., 4) of wxyz quaternions: rotates by ``second``, then by ``first``."""
    import torch

    w1, x1, y1, z1 = first.unbind(-1)
    w2, x2, y2, z2 = second.unbind(-1)
    return torch.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        dim=-1,
    )


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Quaternions (..., 4), wxyz and of any length but zero, to rotation matrices (..., 3, 3)."""
    import torch

    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    matrices: Tensor = torch.stack(entries, dim=-1).unflatten(-1, (3, 3))
    return matrices
