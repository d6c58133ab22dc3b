"""A step on CUDA needs no host-device synchronisation, or it cannot be captured: without a GPU.

Torch's fake tensors have a device, shapes and types but no values; an operation whose result would
need one raises. So the forward pass is walked through as CUDA would do it. Backward passes and
gsplat's kernels cannot be.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.nn import Module

from eavatar.avatar.base_motion import Attachment, BaseMotion
from eavatar.avatar.control import Neighbours
from eavatar.avatar.gaussians import Arrangement
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.prepared import prepare_networks
from eavatar.rendering.tiles import bin_splats
from eavatar.settings import SplatSettings, read_config
from eavatar.splat.image_losses import ImageLosses
from tests.scenes import CONFIG

COUNT, NEAR, FAR = 1000, 700, 300

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


class NoPerceptual(Module):
    """Stands where LPIPS does: a distance of the patches, as it has no weights here."""

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).square().mean(dim=(1, 2, 3))


def splat_settings(*overlays: str) -> SplatSettings:
    return read_config(CONFIG / "config.yaml", *(CONFIG / name for name in overlays)).splat


def make_avatar(settings: SplatSettings) -> Avatar:
    head = HeadSettings(
        expression_size=64, feature_size=128, colour_size=32, width=256, near=0.1, far=0.25,
        deform_scale=0.3,
    )  # fmt: skip
    base = BaseMotion.empty(vertices=500, faces=900, expressions=64)
    return Avatar.blank(AvatarSettings.of(settings, head, scale=0.1), COUNT, base)


@pytest.mark.parametrize("fused", [False, True])
def test_generating_gaussians(fake_cuda, monkeypatch, fused):
    avatar = make_avatar(splat_settings())
    neighbours = Neighbours(torch.zeros(COUNT, 32, dtype=torch.long), torch.ones(COUNT, 32))
    attachment = Attachment(torch.zeros(COUNT, 3, dtype=torch.long), torch.rand(COUNT, 3))
    normals = torch.rand(COUNT, 3)
    arrangement = Arrangement(torch.rand(COUNT), NEAR, FAR, neighbours, attachment, normals)
    prepared = None
    if fused:
        pytest.importorskip("triton")
        monkeypatch.setattr("eavatar.avatar.prepared._fuses", lambda device: True)
        avatar.generator.mixed_precision = True
        prepared = prepare_networks(avatar.generator, avatar.neutral, arrangement, True)
        assert prepared.resting.shape == (NEAR, 3)
    generated = avatar.generator(
        avatar.neutral,
        arrangement,
        avatar.settings.control,
        torch.zeros(64),
        torch.zeros(6, requires_grad=not fused),
        0.1,
        prepared,
    )
    assert generated.gaussians.means.shape == (COUNT, 3) and generated.gaussians.means.is_cuda


def test_binning_with_a_capacity(fake_cuda):
    centres, radii = torch.rand(4, COUNT, 2), torch.ones(4, COUNT, 2, dtype=torch.int32)
    tiles = bin_splats(centres, radii, torch.rand(4, COUNT), 512, 448, 100_000)
    assert tiles.splats.shape == (100_000,)


@pytest.mark.parametrize("overlays", [(), ("paper.yaml",)])
def test_upsampling_and_losses(fake_cuda, overlays):
    settings = splat_settings(*overlays)
    image_losses = ImageLosses(make_avatar(settings), NoPerceptual(), settings.lpips_patch)
    losses = image_losses.terms(
        torch.rand(2, 256, 224, 32),
        torch.zeros(2, 1024, 896, 4, dtype=torch.uint8),
        torch.ones(2, 1024, 896),
        torch.zeros(2, dtype=torch.long),
    )
    assert {name: value.shape for name, value in losses.items()} == dict.fromkeys(
        ("rgb", "coarse", "padding", "lpips"), torch.Size()
    )


def test_a_synchronisation_would_be_seen(fake_cuda):
    with pytest.raises(DynamicOutputShapeException):
        torch.rand(5).nonzero()
