"""Where tensors are computed on, chosen in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device() -> torch.device:
    """The first GPU that torch may use, otherwise the CPU."""
    import torch  # late: some stages load it for one of their backends only

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
