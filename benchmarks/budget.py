"""Where the error is: PSNR, SSIM and fraction of the squared error of each part of some frames.

The parts are the regions of `eavatar.tables.regions`, made disjoint so that their errors add up:
the outline's band comes first, the others are without it, and what is nobody is the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from eavatar.data.frames import FrameSet
from eavatar.data.methods import Method, ViewRequest
from eavatar.tables.evaluate import Truth
from eavatar.tables.regions import LABELLED, MIN_PIXELS

WHOLE = "whole"
DISJOINT = ("outline", "hair", "brows", "eyes", "mouth", "face", "torso", "background")
PARTS = (WHOLE, *DISJOINT)
VIEWS = 4  # drawn at once when measuring


@dataclass(frozen=True)
class MeasuredSet:
    """Some frames that are measured together.

    Attributes:
        name: of the set.
        frames: with all their cameras.
        timesteps: T' indices.
        cameras: C' indices.
        labels: (K, H, W) of `label_parts`, by timestep and cameras, kept from call to call.
    """

    name: str
    frames: FrameSet
    timesteps: list[int]
    cameras: list[int]
    labels: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        for timestep in self.timesteps:
            for first in range(0, len(self.cameras), VIEWS):
                yield timestep, self.cameras[first : first + VIEWS]

    def parts(self, timestep: int, cameras: list[int]) -> Tensor:
        """The labels of some cameras' frames of a timestep."""
        key = (timestep, *cameras)
        if key not in self.labels:
            usable = np.zeros_like(self.frames.usable)
            usable[timestep, cameras] = True
            truth = Truth.read(replace(self.frames, usable=usable), timestep)
            self.labels[key] = label_parts(truth)
        return self.labels[key]


def label_parts(truth: Truth) -> Tensor:
    """1 + the index in `DISJOINT` of each pixel (K, H, W), 0 in the padding of the crop."""
    order = ("background", *LABELLED)
    numbers = np.array([1 + DISJOINT.index(name) for name in order], np.uint8)
    outline = 1 + DISJOINT.index("outline")
    labels = [np.where(found.outline, outline, numbers[found.labels]) for found in truth.regions]
    stacked = torch.from_numpy(np.stack(labels)).to(truth.visible.device)
    return stacked * (truth.visible > 0)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM maps (C, H, W) of images (C, H, W, 3): Gaussian window with σ = 1.5."""
    places = torch.arange(-5.0, 6.0, device=first.device)
    bell = torch.exp(-places.square() / 4.5)
    kernel = (bell[:, None] * bell / bell.sum() ** 2).expand(3, 1, 11, 11)

    def blur(images: Tensor) -> Tensor:
        return conv2d(images, kernel, padding=5, groups=3)

    x, y = (images.permute(0, 3, 1, 2) for images in (first, second))
    mean_x, mean_y = blur(x), blur(y)
    variance = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variance + 9e-4)).mean(dim=1)


def measure(method: Method, measured: MeasuredSet, in_parts: bool = False) -> pd.DataFrame:
    """A row for each of `PARTS`, or for the whole alone.

    The columns are ``psnr_db`` and ``ssim``, means over the images that show enough of a part, and
    ``error_fraction`` and ``area_fraction``, of the squared errors and the pixels of all images.
    """
    sums = [
        _sum_parts(method, measured, timestep, cameras, in_parts)
        for timestep, cameras in measured.batches()
    ]
    errors, similarities, areas = torch.cat(sums, dim=2).double().cpu().numpy()
    shown = areas >= MIN_PIXELS
    rows = {
        name: {
            "psnr_db": _mean(-10 * np.log10(error[seen] / area[seen])),
            "ssim": _mean(similarity[seen] / area[seen]),
            "error_fraction": error.sum() / errors[0].sum(),
            "area_fraction": area.sum() / areas[0].sum(),
        }
        for name, error, similarity, area, seen in zip(
            PARTS, errors, similarities, areas, shown, strict=False
        )
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _sum_parts(
    method: Method, measured: MeasuredSet, timestep: int, cameras: list[int], in_parts: bool
) -> Tensor:
    """(3, P, K) sums of squared error and similarity, and counts, of the parts of K frames."""
    frames = measured.frames
    image = method.render(ViewRequest.of(frames, timestep, cameras))
    views = frames.views(timestep, cameras)
    error = (image - views.images).square().mean(dim=-1)
    maps = torch.stack([error, structural_similarity(image, views.images), torch.ones_like(error)])
    parts = views.visible[None] > 0
    if in_parts:
        labels = measured.parts(timestep, cameras)
        parts = torch.cat([parts, torch.stack([labels == 1 + i for i in range(len(DISJOINT))])])
    return torch.einsum("mkhw,pkhw->mpk", maps, parts.to(maps.dtype))


def write_budget(rows: pd.DataFrame) -> str:
    """PSNR and percentage of the squared error of each part, a line for each set."""
    lines = ["set          " + "".join(f"{name:>16}" for name in PARTS)]
    for name, own in rows.groupby("set", sort=False):
        cells = own.set_index("region").reindex(PARTS)
        text = [
            f"{psnr:6.2f} dB {100 * share:4.1f} %".rjust(16)
            for psnr, share in zip(cells["psnr_db"], cells["error_fraction"], strict=True)
        ]
        lines.append(f"{name:13}" + "".join(text))
    return "\n".join(lines)
