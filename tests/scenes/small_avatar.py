"""An avatar that is drawn in no time: a small ball with random networks."""

from __future__ import annotations

import torch

from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.rendering.splatting import LOW_PASS
from eavatar.settings import read_config
from tests.scenes import CONFIG

SIZE, EXPRESSIONS = 64, 3


def make_avatar(size: int = SIZE, appearances: int = 0) -> Avatar:
    """The networks are random, so that expression changes what one sees."""
    torch.manual_seed(0)
    settings = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").splat
    # The low pass of other renderers, which tests of exports draw with.
    changes = {"image_size": size, "upsampling": 2, "low_pass": LOW_PASS}
    settings = settings.model_copy(update=changes)
    head = HeadSettings(
        expression_size=EXPRESSIONS, appearance_size=appearances, feature_size=8, colour_size=8,
        width=16, near=0.1, far=0.25, deform_scale=0.3,
    )  # fmt: skip
    points = 0.5 * torch.nn.functional.normalize(torch.randn(600, 3), dim=1)
    neutral = NeutralGaussians.from_surface(
        points, torch.rand(len(points), 8) - 0.5, torch.zeros(0, 3), opacity=0.9
    )
    drivers = head.make_drivers()
    for parameter in drivers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drawn = AvatarSettings.of(settings, head, scale=0.1)
    avatar = Avatar(drawn, drivers, Torso(), neutral, points[:68], mixed_precision=False).eval()
    avatar.sort_by_expression_weight()
    return avatar
