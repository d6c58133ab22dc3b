"""The slow and obvious splatting: every pixel against every Gaussian, in plain torch.

The reference of the tests (float64) and of the benchmark. It restates the formulas of the local
affine projection (Zwicker et al. 2001) with gsplat's constants and shares no code with the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eavatar.rendering.splatting import Gaussians, Rendering
from eavatar.transforms import quaternion_to_matrix


def dense_splat(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor,
    pixels_at_once: int = 1 << 30,
) -> Rendering:
    """As `splatting.splat`, in the tensors' own precision, in chunks of pixels."""
    views = [
        _draw_view(gaussians, camera, matrix, width, height, background, pixels_at_once)
        for camera, matrix in zip(world_to_camera, intrinsics, strict=True)
    ]
    features, alpha = (torch.stack(parts) for parts in zip(*views, strict=True))
    return Rendering(features, alpha)


def _draw_view(gaussians, world_to_camera, intrinsics, width, height, background, pixels_at_once):
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    in_camera = gaussians.means @ rotation.T + translation
    near_to_far = torch.argsort(in_camera[:, 2], stable=True)
    order = near_to_far[in_camera[near_to_far, 2] >= 0.01]
    in_camera = in_camera[order]
    means2d, inverses = _project(
        in_camera,
        rotation @ quaternion_to_matrix(gaussians.quaternions[order]),
        gaussians.scales[order],
        intrinsics,
        width,
        height,
    )
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([x, y], -1).reshape(-1, 2).to(means2d) + 0.5
    opacities, features = gaussians.opacities[order], gaussians.features[order]
    drawn, transmittance = [], []
    for chunk in centres.split(pixels_at_once):
        # Checkpointed: the backward pass of a large image would not fit into memory otherwise.
        part, left = checkpoint(
            _draw_chunk, chunk, means2d, inverses, opacities, features, use_reentrant=False
        )
        drawn.append(part)
        transmittance.append(left)
    image, seen = torch.cat(drawn), torch.cat(transmittance)
    image = image + seen[:, None] * background
    return image.reshape(height, width, -1), (1 - seen).reshape(height, width)


def _project(in_camera, rotations, scales, intrinsics, width, height):
    """Centres (N, 2) in pixels and inverse covariances (N, 2, 2)."""
    x, y, z = in_camera.unbind(1)
    (fx, cx), (fy, cy) = intrinsics[0, [0, 2]], intrinsics[1, [1, 2]]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    slope_x = torch.clamp(x / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    slope_y = torch.clamp(y / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], 1
    ).reshape(-1, 2, 3)
    root = jacobian @ rotations * scales[:, None, :]
    covariance = root @ root.mT + 0.3 * torch.eye(2).to(root)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], 1)
    return means2d, torch.linalg.inv(covariance)


def _draw_chunk(centres, means2d, inverses, opacities, features):
    """Features (pixels, D) of Gaussians sorted near to far, and the transmittance (pixels,)."""
    offset = means2d - centres[:, None]
    dx, dy = offset[..., 0], offset[..., 1]
    a, b, c = inverses[:, 0, 0], inverses[:, 0, 1], inverses[:, 1, 1]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = torch.clamp(opacities * torch.exp(-sigma), max=0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    after = torch.cumprod(1 - alpha, dim=1)
    alpha = torch.where(after > 1e-4, alpha, 0)
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    return (alpha * before) @ features, after[:, -1]
