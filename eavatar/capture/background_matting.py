"""BackgroundMattingV2 from one of its published TorchScript files.

Such a file needs none of its authors' code: inputs ``src`` and ``bgr`` (B, 3, H, W), RGB in [0, 1]
of one size with sides divisible by 4, outputs of which the first is alpha (B, 1, H, W), and
attributes for the resolution of its two stages. Source: S. Lin et al., Real-Time High-Resolution
Background Matting, CVPR 2021. Not run with the published weights, which are not at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from eavatar.arrays import Image
from eavatar.capture.backends.background_matting_v2 import RELEASE
from eavatar.device import choose_device
from eavatar.errors import UserError

DIVISOR = 4
# Fraction of the size at which the backbone sees the image, and how many pixels are then refined:
# the authors' advice for HD (2 megapixels), which GHA uses at 2048², and for 4K (8 megapixels).
HD, UHD = (0.25, 80_000), (0.125, 320_000)
UHD_PIXELS = 6_000_000  # from which an image counts as 4K
BATCH_PIXELS = 2048**2  # one image of GHA's size at once, for 8 GB; not measured

_loading = threading.Lock()


@dataclass(frozen=True)
class BackgroundMatting:
    """A loaded network; threads may share it and take turns.

    Attributes:
        module: the TorchScript module, set up for images of one size.
        dtype: of its parameters and inputs.
        batch_size: how many images go through it at once.
    """

    module: Any
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    turn: threading.Lock = field(default_factory=threading.Lock)

    def masks(self, images: Sequence[Image], plate: Image) -> Image:
        """(B, S, S) masks of BGR frames (S, S, 3), given the empty set (S, S, 3)."""
        height, width = plate.shape[:2]
        with self.turn, torch.inference_mode():
            source = self._input(images)
            background = self._input([plate]).expand_as(source)
            masks = self.module(source, background)[0][:, 0, :height, :width]
            levels = (masks.float().clamp(0, 1) * 255).round().byte()
            arrays: Image = levels.cpu().numpy()
            return arrays

    def _input(self, images: Sequence[Image]) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], the lower and the right edge repeated up to the divisor."""
        bgr = torch.from_numpy(np.stack(images)).to(self.device)
        colour = bgr.flip(-1).permute(0, 3, 1, 2).to(self.dtype) / 255
        height, width = colour.shape[2:]
        return pad(colour, (0, -width % DIVISOR, 0, -height % DIVISOR), mode="replicate")


def load_background_matting(path: Path, image_size: int) -> BackgroundMatting:
    """The network of a TorchScript file, on the GPU if there is one; the same for all threads.

    Args:
        path: the file.
        image_size: side of the frames, pixels.
    Raises:
        UserError: the file is missing, is not a TorchScript file of BackgroundMattingV2, or is one
            of half precision where there is no GPU.
    """
    with _loading:
        return _load(path, image_size)


@lru_cache(maxsize=1)
def _load(path: Path, image_size: int) -> BackgroundMatting:
    avoid = "or set capture.matte.backend to plate"
    if not path.is_file():
        raise UserError(
            f"the weights of BackgroundMattingV2 are missing: get {path.name} from {RELEASE} and "
            f"put it at {path} (capture.matte.background_matting_v2.weights), {avoid}."
        )
    device = choose_device()
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a TorchScript file, or it is damaged; get a file torchscript_*.pth "
            f"from {RELEASE}, {avoid}."
        ) from error
    pixels = image_size**2
    scale, refined = UHD if pixels >= UHD_PIXELS else HD
    attributes = {
        "backbone_scale": scale,
        "refine_mode": "sampling",
        "refine_sample_pixels": refined,
    }
    for name, value in attributes.items():
        if not hasattr(module, name):
            raise UserError(
                f"{path} has no attribute '{name}', so it is not the TorchScript file of "
                f"BackgroundMattingV2; get it from {RELEASE}, {avoid}."
            )
        setattr(module, name, value)
    dtypes = {parameter.dtype for parameter in module.parameters()}
    half = torch.float16 in dtypes
    if half and device.type == "cpu":
        raise UserError(
            f"{path} is of half precision, which needs a CUDA device; get the file "
            f"torchscript_*_fp32.pth from {RELEASE}, {avoid}."
        )
    dtype = torch.float16 if half else torch.float32
    return BackgroundMatting(module, device, dtype, max(1, BATCH_PIXELS // pixels))
