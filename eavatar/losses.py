"""The loss terms of both stages as pure, unweighted functions; `train.py` holds the weighted sum."""

from __future__ import annotations

from torch import Tensor


def rgb_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute colour difference over the weighted pixels (L_rgb of Eq. 18 and 19), a scalar.

    Args:
        prediction, target: (..., H, W, 3) in [0, 1].
        weight: (..., H, W), 1 where the pixel counts and 0 in the padding of the crop.
    """
    difference = (prediction - target).abs().mean(dim=-1)
    return (difference * weight).sum() / weight.sum().clamp(min=1)
