"""Gaussian splatting: the one renderer of both stages.

On CUDA tensors it is gsplat, or Triton kernels of ours where no gradient is wanted, on CPU tensors
our numba kernel, with one set of conventions, those of gsplat 1.5.3: OpenCV cameras, quaternions
wxyz of any length, pixel centres at +0.5, the local affine projection of Zwicker et al. 2001 (EWA
splatting) with a low pass, nothing nearer than 0.01 m, alpha at most 0.999 and ignored below 1/255,
and a pixel is finished before the Gaussian that would bring its transmittance to 1e-4 or less.

With a capacity, drawing on CUDA never synchronises the host, and a CUDA graph can hold it, forward
and backward.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eavatar.device import runs_triton
from eavatar.errors import UserError
from eavatar.rendering.tiles import TILE, bin_splats

logger = logging.getLogger(__name__)

# gsplat 1.5.3 divides by the number of Gaussians, and its projection adds up the gradients of equal
# Gaussian numbers within a warp, without regard to scenes.
MIN_GAUSSIANS = 32
# Channels of one pass. gsplat keeps a pixel's channels in registers and is slow beyond.
MAX_CHANNELS = 32
LOW_PASS = 0.3  # gsplat's; pixels²


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians with D feature channels, float32, all on one device.

    All fields may have one more leading axis, of B scenes.

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
        # With the wrong number of axes, no shape below fits the means.
        sizes = tuple(self.means.shape[:-1]) if self.means.ndim in (2, 3) else (-1,)
        shapes = {
            "means": (*sizes, 3),
            "quaternions": (*sizes, 4),
            "scales": (*sizes, 3),
            "opacities": sizes,
            "features": (*sizes, self.features.shape[-1]),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, not {shape}")


@dataclass(frozen=True)
class Rendering:
    """Images of C views, or of B scenes with C views each: one more leading axis everywhere.

    Attributes:
        features: (C, H, W, D), on the background if there is one, otherwise on zero.
        alpha: (C, H, W) in [0, 1].
        pairs: () int64, (Gaussian, tile) pairs that the whole call needed. Where they exceed its
            capacity, the farthest were not drawn. Zero on the CPU, which knows no capacity.
    """

    features: Tensor
    alpha: Tensor
    pairs: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))


def splat(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor | None = None,
    capacity: int | None = None,
    low_pass: float = LOW_PASS,
) -> Rendering:
    """Draw the Gaussians into C views; differentiable in all their fields and the background.

    Args:
        world_to_camera: (C, 4, 4) rigid, metres; no gradient reaches the cameras. (B, C, 4, 4) if
            the Gaussians are B scenes.
        intrinsics: (C, 3, 3) pixels of the width × height image; likewise (B, C, 3, 3).
        background: (D,) feature behind everything.
        capacity: how many (Gaussian, tile) pairs are drawn at most over all scenes and views, about
            70 bytes each. None counts them, a host-device synchronisation. Ignored on the CPU.
        low_pass: added to the variances of what is drawn, pixels², so that no Gaussian falls
            between pixels.

    Raises:
        ValueError: Gaussians and cameras are not of the same number of scenes.
        UserError: gsplat has no CUDA kernels and cannot compile them.
    """
    scenes = gaussians.means.shape[:-2]
    if not scenes == world_to_camera.shape[:-3] == intrinsics.shape[:-3]:
        raise ValueError(
            f"scenes of Gaussians {tuple(scenes)}, of cameras {tuple(world_to_camera.shape[:-3])} "
            f"and of intrinsics {tuple(intrinsics.shape[:-3])} differ"
        )
    cameras = (world_to_camera.detach(), intrinsics.detach())
    if gaussians.means.is_cuda:
        inputs = [*_tensors(gaussians), *([] if background is None else [background])]
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        splat_cuda = _splat_gsplat if trains or not runs_triton() else _splat_triton
        return splat_cuda(gaussians, *cameras, width, height, background, low_pass, capacity)
    return _splat_cpu(gaussians, *cameras, width, height, background, low_pass)


def _splat_cpu(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
    low_pass: float,
) -> Rendering:
    if background is None:
        background = gaussians.features.new_zeros(gaussians.features.shape[-1])
    inputs = (*_tensors(gaussians), world_to_camera, intrinsics)
    if gaussians.means.ndim == 2:
        images = _CpuSplat.apply(*inputs, background, width, height, low_pass)
    else:
        scenes = [
            _CpuSplat.apply(*scene, background, width, height, low_pass)
            for scene in zip(*inputs, strict=True)
        ]
        images = [torch.stack(parts) for parts in zip(*scenes, strict=True)]
    image, alpha = images
    return Rendering(image, alpha)


def _splat_gsplat(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
    low_pass: float,
    capacity: int | None,
) -> Rendering:
    gsplat = _load_gsplat()
    means, quaternions, scales, opacities, features = _tensors(_enough(gaussians))
    radii, centres, depths, conics, _ = gsplat.fully_fused_projection(
        means, None, quaternions, scales, world_to_camera, intrinsics, width, height, low_pass,
        opacities=opacities,  # for radii that end where alpha does
    )  # fmt: skip
    tiles = bin_splats(centres, radii, depths, width, height, capacity)
    if background is not None:
        # Drawn as differences from the background: then it is one sum, and alpha needs no gradient.
        features = features - background.detach()
    channels = features[..., None, :, :].expand(*depths.shape, -1)
    opacities = opacities[..., None, :].expand(depths.shape)
    passes = [
        gsplat.rasterize_to_pixels(
            centres, conics, part, opacities, width, height, TILE,
            tiles.offsets, tiles.splats, masks=tiles.drawn,
        )
        for part in channels.split(MAX_CHANNELS, dim=-1)
    ]  # fmt: skip
    images, alphas = zip(*passes, strict=True)
    image = images[0] if len(images) == 1 else torch.cat(images, dim=-1)
    if background is not None:
        image = image + background.detach()
        if background.requires_grad:
            # By what is left to see of it; as the rest of a difference it would be imprecise.
            seen = 1 - alphas[0].detach()
            image = image + seen * (background - background.detach())
    return Rendering(image, alphas[0][..., 0], tiles.pairs)


@torch.no_grad()
def _splat_triton(
    gaussians: Gaussians,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
    low_pass: float,
    capacity: int | None,
) -> Rendering:
    from eavatar.rendering import inference

    means, quaternions, scales, opacities, features = _tensors(_enough(gaussians))
    images = world_to_camera.shape[:-2]
    with torch.cuda.device(means.device):  # Triton's kernels run on the current one
        splats = inference.project(
            means, quaternions, scales, opacities, world_to_camera, intrinsics,
            width, height, low_pass,
        )  # fmt: skip
        lists = inference.list_tiles(splats, images.numel(), width, height, capacity)
        image, alpha = inference.composite(
            splats, lists, features, background, images[-1], width, height
        )
    return Rendering(image.unflatten(0, images), alpha.unflatten(0, images), lists.pairs)


def _tensors(gaussians: Gaussians) -> list[Tensor]:
    return [getattr(gaussians, field.name) for field in fields(Gaussians)]


def _enough(gaussians: Gaussians) -> Gaussians:
    """The same with invisible Gaussians behind the last, if there are too few for the kernels."""
    missing = MIN_GAUSSIANS - gaussians.opacities.shape[-1]
    if missing <= 0:
        return gaussians
    rows = gaussians.opacities.ndim
    return Gaussians(
        *(
            pad(tensor, (0, missing) if tensor.ndim == rows else (0, 0, 0, missing))
            for tensor in _tensors(gaussians)
        )
    )


@cache
def _load_gsplat() -> ModuleType:
    """gsplat, its CUDA kernels compiled."""
    import gsplat

    if importlib.util.find_spec("gsplat.csrc") is None and not _compiled():
        logger.info("gsplat compiles its CUDA kernels; that takes minutes and happens once")
    try:
        from gsplat.cuda._backend import _C as kernels
    except (ImportError, RuntimeError) as error:
        wheels = Path(torch.__file__).parents[1] / "nvidia"
        headers = ":".join(str(folder) for folder in sorted(wheels.glob("*/include")))
        raise UserError(
            "gsplat's CUDA kernels do not compile (the compiler's messages are above); "
            f"it needs g++, ninja, nvcc and headers of CUDA {torch.version.cuda}, and finds those "
            f"of the torch wheels after `export CPATH={headers}`"
        ) from error
    if kernels is None:
        raise UserError(
            f"gsplat finds no nvcc to compile its CUDA kernels; install the CUDA "
            f"{torch.version.cuda} toolkit and set CUDA_HOME to its folder"
        )
    package: ModuleType = gsplat
    return package


def _compiled() -> bool:
    """Whether gsplat will find kernels that an earlier run compiled; it looks at the same place."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory("gsplat_cuda", verbose=False), "gsplat_cuda.so").exists()


class _CpuSplat(torch.autograd.Function):
    """`eavatar.rendering.cpu` as a differentiable function of tensors."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        from eavatar.rendering import cpu

        *tensors, width, height, low_pass = inputs
        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
        means, quaternions, scales, opacities, features, poses, intrinsics, background = arrays
        splats = cpu.prepare(
            means, quaternions, scales, opacities, poses, intrinsics, width, height, low_pass
        )
        images = cpu.composite(splats, features, background, len(poses), width, height)
        ctx.save_for_backward(*tensors)
        ctx.splats = splats
        ctx.size = width, height
        return tuple(torch.from_numpy(image) for image in images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from eavatar.rendering import cpu

        arrays = [tensor.detach().contiguous().numpy() for tensor in ctx.saved_tensors]
        means, quaternions, scales, _, features, *cameras, background = arrays
        rows, background_gradient = cpu.composite_gradients(
            ctx.splats,
            features,
            background,
            *(gradient.contiguous().numpy() for gradient in gradients),
        )
        inputs = cpu.project_gradients(
            ctx.splats, rows, means, quaternions, scales, *cameras, *ctx.size
        )
        to_gaussians = [torch.from_numpy(array) for array in inputs]
        to_background = torch.from_numpy(background_gradient)
        return *to_gaussians, None, None, to_background, None, None, None
