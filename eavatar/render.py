"""Gaussian splatting: the one renderer of both stages.

On CUDA tensors it is gsplat, on CPU tensors our numba kernel, with one set of conventions, those of
gsplat 1.5.3: OpenCV cameras, quaternions wxyz of any length, pixel centres at +0.5, the local
affine projection of Zwicker et al. 2001 (EWA splatting) with 0.3 pixels² of low pass, nothing
nearer than 0.01 m, alpha at most 0.999 and ignored below 1/255, and a pixel is finished before the
Gaussian that would bring its transmittance to 1e-4 or less.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians with D feature channels, float32, all on one device.

    Attributes:
        means: (N, 3) world space, metres.
        quaternions: (N, 4) wxyz, any length but zero.
        scales: (N, 3) standard deviations along the axes, positive, metres.
        opacities: (N,) in [0, 1].
        features: (N, D).

    Raises:
        ValueError: a shape is wrong.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor

    def __post_init__(self) -> None:
        count, channels = len(self.means), self.features.shape[-1]
        shapes = {
            "means": (count, 3),
            "quaternions": (count, 4),
            "scales": (count, 3),
            "opacities": (count,),
            "features": (count, channels),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, not {shape}")


@dataclass(frozen=True)
class Rendering:
    """Images of C views.

    Attributes:
        features: (C, H, W, D), on the background if there is one, otherwise on zero.
        alpha: (C, H, W) in [0, 1].
        depth: (C, H, W) sum of weight · z of the means, metres; divide by alpha for the mean depth.
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor


def splat(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor | None = None,
) -> Rendering:
    """Draw the Gaussians into C views; differentiable in all their fields and the background.

    Args:
        world_to_camera: (C, 4, 4) rigid, metres; no gradient reaches the cameras.
        intrinsics: (C, 3, 3) pixels of the width × height image.
        background: (D,) feature behind everything.
    """
    draw = _splat_cuda if gaussians.means.is_cuda else _splat_cpu
    cameras = (world_to_camera.detach(), intrinsics.detach())
    if background is None:
        background = gaussians.features.new_zeros(gaussians.features.shape[1])
    return draw(gaussians, *cameras, width, height, background)


def _splat_cpu(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor,
) -> Rendering:
    image, alpha, depth = _CpuSplat.apply(
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        gaussians.features,
        background,
        world_to_camera,
        intrinsics,
        width,
        height,
    )
    return Rendering(image, alpha, depth)


def _splat_cuda(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor,
) -> Rendering:
    rasterization = _load_gsplat()
    # packed=True with a background fails in 1.5.3 (issues 764, 826), so it is composited here.
    drawn, alpha, _ = rasterization(
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        gaussians.features,
        world_to_camera,
        intrinsics,
        width,
        height,
        packed=False,
        render_mode="RGB+D",
    )
    image = drawn[..., :-1] + (1 - alpha) * background
    return Rendering(image, alpha[..., 0], drawn[..., -1])


@cache
def _load_gsplat():
    logger.info("gsplat compiles its CUDA kernels at first use, which takes minutes")
    from gsplat import rasterization

    return rasterization


class _CpuSplat(torch.autograd.Function):
    """`eavatar.splat_cpu` as a differentiable function of tensors."""

    @staticmethod
    def forward(ctx, *inputs):
        from eavatar import splat_cpu

        *tensors, width, height = inputs
        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
        means, quaternions, scales, opacities, features, background, poses, intrinsics = arrays
        splats = splat_cpu.prepare(
            means, quaternions, scales, opacities, poses, intrinsics, width, height
        )
        images = splat_cpu.composite(splats, features, background, len(poses), width, height)
        ctx.save_for_backward(*tensors)
        ctx.splats = splats
        ctx.size = width, height
        return tuple(torch.from_numpy(image) for image in images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        from eavatar import splat_cpu

        arrays = [tensor.detach().contiguous().numpy() for tensor in ctx.saved_tensors]
        means, quaternions, scales, _, features, background, *cameras = arrays
        rows, background_gradient = splat_cpu.composite_gradients(
            ctx.splats,
            features,
            background,
            *(gradient.contiguous().numpy() for gradient in gradients),
        )
        inputs = splat_cpu.project_gradients(
            ctx.splats, rows, means, quaternions, scales, *cameras, *ctx.size
        )
        outputs = (*inputs, background_gradient)
        return *(torch.from_numpy(output) for output in outputs), None, None, None, None
