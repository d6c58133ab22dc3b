"""LPIPS, the learned perceptual distance, with weights that are on disk or not at all.

The `lpips` package ships its small linear heads; the backbone's weights are torchvision's and are
looked for where torchvision would put them. Nothing is ever downloaded here, and no distance is
ever taken with random weights.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from eavatar.errors import UserError
from eavatar.weights import Net, backbone

logger = logging.getLogger(__name__)


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018, version 0.1) between images in [0, 1].

    The values are those of the `lpips` package, which is taken apart for speed: channels-last
    throughout, the target's features without a gradient, and normalisation, difference and linear
    head in one expression that a compiler can fuse. The networks follow the caller's
    `torch.autocast`; the distances are float32.

    Args:
        model: `lpips.LPIPS` of ``alex`` or ``vgg``; its weights are frozen.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, model: Any):
        super().__init__()
        trunk, scaling = model.net, model.scaling_layer
        self.slices = nn.ModuleList(
            getattr(trunk, f"slice{index + 1}") for index in range(trunk.N_slices)
        )
        self.heads = nn.ParameterList(head.model[-1].weight.flatten() for head in model.lins)
        # From [0, 1] to [-1, 1] and then as the trunk wants it, in one product and one difference.
        self.register_buffer("gain", (2 / scaling.scale).flatten())
        self.register_buffer("offset", ((1 + scaling.shift) / scaling.scale).flatten())
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def load(cls, net: Net, device: torch.device) -> Perceptual:
        """With the published weights, of ``vgg`` (training, as Gaussian Head Avatar) or ``alex``
        (the usual metric).

        Raises:
            UserError: a package or the weights are missing, or the weights file is damaged.
        """
        fault = _fault(net)
        if fault:
            raise UserError(f"{fault}.")
        import lpips

        try:
            with warnings.catch_warnings():
                # lpips still passes torchvision's old `pretrained`, which warns.
                warnings.simplefilter("ignore", UserWarning)
                model = lpips.LPIPS(net=net, verbose=False)
        except Exception as error:  # torch's errors have no class in common
            weights = backbone(net)
            raise UserError(
                f"{weights.path} does not hold the published weights; download it again from "
                f"{weights.source}."
            ) from error
        return cls(model).to(device)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distances (C,) of images (C, H, W, 3) in [0, 1]; differentiable by the prediction."""
        with torch.no_grad():
            wanted = self._features(target)
        distances = prediction.new_zeros(len(prediction), dtype=torch.float32)
        for ours, theirs, head in zip(self._features(prediction), wanted, self.heads, strict=True):
            difference = _unit(ours) - _unit(theirs)
            weighted = difference.square() * head[:, None, None]
            distances = distances + weighted.sum(dim=1).mean(dim=(1, 2))
        return distances

    def _features(self, images: Tensor) -> list[Tensor]:
        """What the trunk's five parts give, (C, K, h, w) each."""
        hidden, features = (images * self.gain - self.offset).permute(0, 3, 1, 2), []
        for part in self.slices:
            hidden = part(hidden)
            features.append(hidden)
        return features


def _unit(features: Tensor) -> Tensor:
    """Features (C, K, h, w) of length 1 at every pixel, float32."""
    features = features.float()
    # The bound changes no value, but the root's slope at 0 is infinite.
    length = features.square().sum(dim=1, keepdim=True).clamp(min=1e-20).sqrt()
    return features / (length + 1e-10)


def load_perceptual(net: Net, device: torch.device, required: bool) -> Perceptual | None:
    """LPIPS, or None and one message in the log where it cannot be had and is not required.

    Raises:
        UserError: it cannot be had and is required, or the weights file is damaged.
    """
    fault = _fault(net)
    if fault is None:
        return Perceptual.load(net, device)
    if required:
        raise UserError(f"{fault}, or set lpips_required to false to do without.")
    logger.warning("LPIPS (%s) is left out: %s.", net, fault)
    return None


def _fault(net: Net) -> str | None:
    """Why LPIPS cannot be had and what to do about it, or None."""
    weights = backbone(net)
    if not weights.path.is_file():
        return f"{weights.path} does not exist; download {weights.source} to that place"
    try:
        import lpips  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        return f"the package lpips cannot be imported ({error}); install lpips and torchvision"
    return None
