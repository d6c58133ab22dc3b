"""Where tensors are computed on, chosen in one place."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """The first GPU that torch may use, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
