"""Files of network weights that packages look for in torch's folder, found without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from eavatar.backends import WeightFile

Net = Literal["alex", "vgg"]
SITE = "https://download.pytorch.org/models"
BACKBONES: dict[Net, str] = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
TORCHVISION_LICENCE = "BSD-3-Clause"


def checkpoints_folder() -> Path:
    """``$TORCH_HOME/hub/checkpoints``, where torch's hub and those who use it look for weights."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def backbone(net: Net) -> WeightFile:
    """The weights of a backbone of LPIPS."""
    path = checkpoints_folder() / BACKBONES[net]
    return WeightFile(
        path,
        f"{SITE}/{BACKBONES[net]}",
        TORCHVISION_LICENCE,
        restriction="trained on ImageNet, whose images are for research only",
        open=open_tensors,
    )


def open_tensors(path: Path) -> Any:
    """What a file of tensors or a NumPy array holds; nothing else is unpickled.

    Raises:
        Exception: it is neither, or damaged; torch's errors have no class in common.
    """
    if path.suffix == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
