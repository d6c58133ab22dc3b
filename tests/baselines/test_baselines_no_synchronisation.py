"""What a training step of a baseline draws needs no host-device synchronisation: without a GPU.

As in `tests/avatar/test_no_synchronisation.py`. Backward passes cannot be walked through.
"""

from __future__ import annotations

import pytest
import torch

from eavatar.baselines.havatar import HAvatar, HavatarModelSettings
from eavatar.baselines.nerface import NeRFace, NerfaceModelSettings
from eavatar.baselines.pixels import choose_pixels, look_up
from eavatar.baselines.volume import cast_rays
from eavatar.settings import Config, read_config
from tests.scenes import CONFIG, ROOT

EXPRESSIONS, IMAGES, SIZE = 5, 2, 32

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


def read() -> Config:
    return read_config(CONFIG / "config.yaml", ROOT / "tests/tiny.yaml")


def views() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Intrinsics, cameras and poses of the images."""
    return torch.rand(IMAGES, 3, 3), torch.rand(IMAGES, 4, 4), torch.rand(IMAGES, 6)


def test_rays_of_nerface(fake_cuda):
    content = read().nerface.model_dump(include=set(NerfaceModelSettings.model_fields))
    settings = NerfaceModelSettings(**content, expression_size=EXPRESSIONS, scale=0.1)
    model = NeRFace(settings)
    pixels = torch.zeros(IMAGES, SIZE, SIZE, 4, dtype=torch.uint8)
    chosen = choose_pixels(pixels[..., 3] > 0, 40, 0.9)
    rays = cast_rays(chosen + 0.5, *views(), 0.1)
    codes = torch.zeros(IMAGES, settings.latent_size)
    condition = model.condition(torch.rand(IMAGES, EXPRESSIONS), codes)
    drawn = model(rays, model.interval(rays), condition, noise=0.1)
    assert [image.shape for image in drawn] == [(IMAGES, 40, 3)] * 2
    assert drawn[1].is_cuda and look_up(pixels, chosen).shape == (IMAGES, 40, 4)


def test_images_of_havatar(fake_cuda):
    content = read().havatar.model_dump(include=set(HavatarModelSettings.model_fields))
    model = HAvatar(
        HavatarModelSettings(
            **content, expression_size=EXPRESSIONS, vertices=20, faces=30, scale=0.1
        )
    )
    # The samples of the mesh are made once, in a step that is not captured.
    model.conditions._samples = torch.zeros(99, 3, dtype=torch.int64), torch.rand(99, 3)
    intrinsics, cameras, poses = views()
    style = model.style(poses, torch.zeros(IMAGES, model.settings.latent_size))
    planes = model.planes(torch.rand(IMAGES, EXPRESSIONS), style)
    centres, intrinsics = model.at_field_size(intrinsics)
    rays = model.cast(centres.expand(IMAGES, -1, -1), intrinsics, cameras, poses)
    passes = model(planes, rays, model.interval(rays.riding), noise=0.1)
    images = model.upsample(passes[1].colours, style)
    assert images.shape == (IMAGES, 32, 32, 3) and images.is_cuda
    assert model.blend.roughness().shape == ()
