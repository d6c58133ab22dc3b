"""From splatted feature images to the final colours at a multiple of their size.

Images here are (C, H, W, D), which seen as (C, D, H, W) is PyTorch's channels-last layout: the fast
one for convolutions, kept all the way. The networks follow the caller's `torch.autocast`; what they
return is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from eavatar.avatar.networks import LEAKY_SLOPE
from eavatar.backends import UPSAMPLERS

NORM_EPSILON = 1e-5


def make_upsampler(kind: str, channels: int, width: int, factor: int) -> nn.Module:
    """A network from features (C, H, W, D) to colours (C, factor · H, factor · W, 3), float32.

    Args:
        kind: a name in `eavatar.avatar.upsamplers`.
        channels: D, at least 3; the first three are RGB.
        width: channels of the network, see there.
        factor: final size / feature size.

    Raises:
        ValueError: the network cannot make this factor.
    """
    network: nn.Module = UPSAMPLERS[kind].run(channels, width, factor)
    return network


class SubPixelUpsampler(nn.Module):
    """Bilinear interpolation of the first three channels plus a learned residual.

    The residual network works at the small size and ends in a sub-pixel shuffle; it is zero at
    first, so that training starts from the plain interpolation. Nothing is normalised over the
    image: a pixel depends on its neighbourhood only.

    Args:
        channels: feature channels, at least 3; the first three are RGB.
        width: channels of the hidden layers.
        factor: final size / feature size.
    """

    def __init__(self, channels: int, width: int, factor: int):
        super().__init__()
        self.factor = factor
        last = nn.Conv2d(width, 3 * factor**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (C, H, W, D) to colours (C, factor · H, factor · W, 3), not clamped."""
        residual = self.residual(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # Channels in the order (row, column, colour), so that what lies together stays together.
        blocks = residual.unflatten(3, (self.factor, self.factor, 3)).transpose(2, 3)
        plain = stretch(features[..., :3].float(), self.factor, align_corners=False)
        image: Tensor = plain + blocks.reshape(plain.shape)
        return image


class PublishedUpsampler(nn.Module):
    """The ×4 network of Gaussian Head Avatar (Xu et al. 2024), from its published layer sizes.

    Two bilinear doublings, each between pairs of 3×3 convolutions that are normalised over the
    image: every pixel depends on all others, so that crops need not agree with the whole.

    Args:
        channels: feature channels.
        width: channels at the final size; twice and four times as many at the smaller ones.
        factor: final size / feature size, 4.
    Raises:
        ValueError: another factor.
    """

    def __init__(self, channels: int, width: int, factor: int):
        super().__init__()
        if factor != 4:
            raise ValueError(f"Gaussian Head Avatar's upsampler makes images 4 times as large, "
                             f"not {factor}; set splat.upsampling to 4.")  # fmt: skip
        self.coarse = _DoubleConvolution(channels, 4 * width)
        self.middle = _DoubleConvolution(4 * width, 2 * width)
        self.fine = _DoubleConvolution(2 * width, width)
        self.colour = nn.Conv2d(width, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (C, H, W, D) to colours (C, 4 · H, 4 · W, 3) in (0, 1)."""
        hidden = self.coarse(features.permute(0, 3, 1, 2))
        hidden = self.middle(_double(hidden))
        hidden = self.fine(_double(hidden))
        image: Tensor = self.colour(hidden).float().sigmoid().permute(0, 2, 3, 1)
        return image


class _DoubleConvolution(nn.Module):
    """Twice a 3×3 convolution, normalisation over the image, ReLU: (C, D, H, W) to (C, K, H, W)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return _normalise(self.second(_normalise(self.first(images))))


def _normalise(images: Tensor) -> Tensor:
    """ReLU of every channel of every image at zero mean and unit variance.

    Written out, as the compiler makes two kernels of this but leaves `F.instance_norm`, which is
    slow in the channels-last layout, as it is.
    """
    values = images.float()
    variance, mean = torch.var_mean(values, dim=(2, 3), correction=0, keepdim=True)
    return relu((values - mean) * torch.rsqrt(variance + NORM_EPSILON)).to(images.dtype)


def _double(images: Tensor) -> Tensor:
    """(C, D, H, W) to (C, D, 2 H, 2 W)."""
    return stretch(images.permute(0, 2, 3, 1), 2, align_corners=True).permute(0, 3, 1, 2)


def stretch(images: Tensor, factor: int, align_corners: bool) -> Tensor:
    """Bilinear interpolation of (C, H, W, D) to (C, factor · H, factor · W, D).

    On CPU tensors it is PyTorch's, on CUDA tensors made for a compiler: `stretch_by_shifts` where
    a gradient may be wanted, else `stretch_by_gathering`.
    """
    if images.is_cuda:
        ours = stretch_by_shifts if torch.is_grad_enabled() else stretch_by_gathering
        return ours(images, factor, align_corners)
    size = [factor * images.shape[1], factor * images.shape[2]]
    planes = images.permute(0, 3, 1, 2)
    larger = interpolate(planes, size, mode="bilinear", align_corners=align_corners)
    return larger.permute(0, 2, 3, 1)


def stretch_by_shifts(images: Tensor, factor: int, align_corners: bool) -> Tensor:
    """Bilinear interpolation of (C, H, W, D) to (C, factor · H, factor · W, D) for a compiler.

    Mixes the image with itself shifted by one pixel, so that the gradient is one of slices, where
    that of PyTorch's interpolation on CUDA adds atomically, slow and never twice the same.

    Args:
        images: (C, H, W, D).
        factor: final size / size.
        align_corners: as in `torch.nn.functional.interpolate`; only for a factor of 2.

    Raises:
        ValueError: corners aligned at another factor.
    """
    values = images.to(_precision(images))
    for axis in (1, 2):
        values = _stretch_axis(values, axis, factor, align_corners)
    return values.to(images.dtype)


def stretch_by_gathering(images: Tensor, factor: int, align_corners: bool) -> Tensor:
    """The same, each value a mix of four: one kernel of a compiler, which writes nothing else.

    Its gradient would add atomically.
    """
    rows, columns = (_pairs(images, axis, factor, align_corners) for axis in (1, 2))
    total = torch.zeros((), device=images.device, dtype=_precision(images))
    for row, row_weight in rows:
        for column, column_weight in columns:
            weight = row_weight[:, None, None] * column_weight[:, None]
            total = total + weight * images[:, row[:, None], column]
    return total.to(images.dtype)


def _pairs(
    images: Tensor, axis: int, factor: int, align_corners: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For all places along a stretched axis the place before in the image and the place after,
    (factor · size,) int64 each, with their weights."""
    size = images.shape[axis]
    places = torch.arange(factor * size, device=images.device)
    before = _place_before(places, factor)
    weight = _weight_after(places, size, factor, align_corners, _precision(images))
    return (before.clamp(min=0), 1 - weight), ((before + 1).clamp(max=size - 1), weight)


def _stretch_axis(images: Tensor, axis: int, factor: int, align_corners: bool) -> Tensor:
    size = images.shape[axis]
    before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, size - 1)], dim=axis)
    after = torch.cat([images.narrow(axis, 1, size - 1), images.narrow(axis, -1, 1)], dim=axis)
    phases = []
    for phase in range(factor):
        places = factor * torch.arange(size, device=images.device) + phase
        weight = _weight_after(places, size, factor, align_corners, images.dtype)
        weight = weight.view(-1, *[1] * (3 - axis))
        pair = (before, images) if phase + factor // 2 < factor else (images, after)
        phases.append(pair[0] + weight * (pair[1] - pair[0]))
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)


def _weight_after(
    places: Tensor, size: int, factor: int, align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """Weight of the pixel after: distance from the one before, 0 to 1. Whole numbers until the
    last division, as the rounded positions of large images would be off by 1e-4 pixels.

    Args:
        places: (N,) indices of the large image.
        size: of the small image, pixels.
        factor: size of the large image / size of the small one.
        align_corners: as in `torch.nn.functional.interpolate`.
        dtype: of the result.
    """
    if align_corners and factor != 2:
        raise ValueError(f"corners can be aligned at a factor of 2, not {factor}.")
    before = _place_before(places, factor)
    if align_corners:
        positions, unit = places * (size - 1), factor * size - 1
    else:
        unit = 2 * factor
        positions = (2 * places + 1 - factor).clamp(0, unit * (size - 1))
    return (positions - unit * before).to(dtype) / unit


def _place_before(places: Tensor, factor: int) -> Tensor:
    """Index of the last pixel whose centre is not beyond these of the large image; -1 for none."""
    return (places + factor // 2) // factor - 1


def _precision(values: Tensor) -> torch.dtype:
    """In which sums are taken: at least float32."""
    return torch.promote_types(values.dtype, torch.float32)
