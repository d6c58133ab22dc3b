"""LPIPS, the learned perceptual distance, with weights that are on disk or not at all.

The `lpips` package ships its small linear heads; the backbone's weights are torchvision's and are
looked for where torchvision would put them. Nothing is ever downloaded here, and no distance is
ever taken with random weights.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eavatar.errors import UserError

logger = logging.getLogger(__name__)

Net = Literal["alex", "vgg"]
SITE = "https://download.pytorch.org/models"
BACKBONES: dict[Net, str] = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class Perceptual:
    """LPIPS (Zhang et al. 2018, version 0.1) between images in [0, 1].

    Args:
        net: ``vgg`` (training, as Gaussian Head Avatar) or ``alex`` (the usual metric).
        device: where the images are.
    Raises:
        UserError: a package or the weights are missing, or the weights file is damaged.
    """

    def __init__(self, net: Net, device: torch.device):
        fault = _fault(net)
        if fault:
            raise UserError(f"{fault}.")
        import lpips

        try:
            with warnings.catch_warnings():
                # lpips still passes torchvision's old `pretrained`, which warns.
                warnings.simplefilter("ignore", UserWarning)
                model = lpips.LPIPS(net=net, verbose=False)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{weights_path(net)} does not hold the published weights; download it again "
                f"from {SITE}/{BACKBONES[net]}."
            ) from error
        self.model = model.eval().requires_grad_(False).to(device)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (C,) of images (C, H, W, 3) in [0, 1]; differentiable."""
        pair = [images.permute(0, 3, 1, 2) for images in (first, second)]
        return self.model(*pair, normalize=True).reshape(-1)


def weights_path(net: Net) -> Path:
    """Where the backbone's weights belong: ``$TORCH_HOME/hub/checkpoints``."""
    return Path(torch.hub.get_dir(), "checkpoints", BACKBONES[net])


def load_perceptual(net: Net, device: torch.device, required: bool) -> Perceptual | None:
    """LPIPS, or None and one message in the log where it cannot be had and is not required.

    Raises:
        UserError: it cannot be had and is required, or the weights file is damaged.
    """
    fault = _fault(net)
    if fault is None:
        return Perceptual(net, device)
    if required:
        raise UserError(f"{fault}, or set lpips_required to false to do without.")
    logger.warning("LPIPS (%s) is left out: %s.", net, fault)
    return None


def _fault(net: Net) -> str | None:
    """Why LPIPS cannot be had and what to do about it, or None."""
    path = weights_path(net)
    if not path.is_file():
        return f"{path} does not exist; download {SITE}/{BACKBONES[net]} to that place"
    try:
        import lpips  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        return f"the package lpips cannot be imported ({error}); install lpips and torchvision"
    return None
