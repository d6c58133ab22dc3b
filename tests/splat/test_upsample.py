"""The upsampler's starting point and its locality."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from eavatar.splat.upsample import Upsampler


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_starts_as_bilinear_interpolation(factor):
    torch.manual_seed(0)
    features = torch.rand(2, 10, 12, 5)
    fine = Upsampler(5, 8, factor)(features)
    images = features[..., :3].permute(0, 3, 1, 2)
    plain = interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    assert torch.equal(fine, plain.permute(0, 2, 3, 1))
    assert fine.shape == (2, 10 * factor, 12 * factor, 3)


def test_all_weights_learn():
    """The zero last layer gets a gradient at once, the others as soon as it is not zero."""
    torch.manual_seed(0)
    upsampler, features = Upsampler(5, 8, 2), torch.rand(1, 8, 8, 5)
    optimiser = torch.optim.SGD(upsampler.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        upsampler(features).square().mean().backward()
        optimiser.step()
    assert all(bool((p.grad != 0).any()) for p in upsampler.parameters())


def test_far_pixels_do_not_matter():
    """No image-wide normalisation: three 3×3 layers see three pixels in each direction."""
    torch.manual_seed(0)
    upsampler = Upsampler(4, 8, 2)
    for parameter in upsampler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.rand(1, 16, 16, 4)
    changed = features.clone()
    changed[0, 0, 0] += 1
    difference = (upsampler(changed) - upsampler(features)).abs().sum(dim=-1)[0]
    assert difference[:8, :8].sum() > 0 and difference[8:].sum() == 0
    assert difference[:, 8:].sum() == 0
