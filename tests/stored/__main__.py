"""Write this version's stored results: ``python -m tests.stored``, then commit ``format_<n>``.

To be run once, when the number of a format is raised; the folders of older formats stay as they
are. A ball of 64 Gaussians whose networks are random everywhere, so that each of them is seen in
the image: what reads one of them wrongly draws another image.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
import torch
from torch import nn

from eavatar.avatar.files import FORMAT, StageOne, write_avatar, write_stage_one
from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.io import Tracking, write_arrays, write_cameras
from eavatar.settings import read_config
from tests.scenes import CONFIG
from tests.scenes.splat_scene import cameras, sphere
from tests.stored import FOLDER

GAUSSIANS, EXPRESSIONS, TIMESTEPS, SIZE, SCALE = 64, 4, 3, 64, 0.1
SERIALS = ("222200036", "222200037")
RADIUS, SIGMA = 1.0, 0.5  # of the controls: as few Gaussians are far apart


def randomise(module: nn.Module, deviation: float) -> None:
    """Random weights in every layer, also in those that start at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=deviation)


def make_tracking() -> Tracking:
    """Strong expressions and small turns."""
    random = np.random.default_rng(0)
    arrays = [
        2 * random.normal(size=(TIMESTEPS, EXPRESSIONS)),
        0.2 * random.normal(size=(TIMESTEPS, 3)),
        0.01 * random.normal(size=(TIMESTEPS, 3)),
        np.zeros((TIMESTEPS, 68, 3)),
        np.zeros((TIMESTEPS, 2)),
    ]
    return Tracking(*(array.astype(np.float32) for array in arrays))


def main() -> None:
    folder = FOLDER / f"format_{FORMAT}"
    if folder.exists():
        sys.exit(f"{folder} exists; what is stored is never written again.")
    torch.manual_seed(0)
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    sizes = {"width": 16, "feature_size": 8, "colour_size": 6}
    sdf = config.sdf.model_copy(update=sizes)
    control = config.splat.control.model_copy(update={"radius": RADIUS, "sigma": SIGMA})
    changes = {"image_size": SIZE, "width": 16, "upsampler_width": 8, "attribute_scale": 0.2}
    splat = config.splat.model_copy(update=changes | {"control": control})
    head = HeadSettings.of(sdf, EXPRESSIONS)
    drivers, torso, points = head.make_drivers(), Torso(), 0.6 * sphere(GAUSSIANS)
    randomise(drivers, 0.3)
    landmarks = 0.6 * sphere(136)[:68]
    torso.place(sdf.torso, landmarks, torch.zeros(1, 6), SCALE)
    features = torch.rand(GAUSSIANS, head.feature_size) - 0.5
    stage = StageOne(head, drivers, torso, landmarks, points, features, geometry={})
    write_stage_one(folder / "sdf" / "full", stage, sdf, cameras=("0",))

    neutral = NeutralGaussians.from_surface(points, features, torch.zeros(0, 3), opacity=0.7)
    avatar = Avatar(AvatarSettings.of(splat, head, SCALE), drivers, torso, neutral, landmarks)
    randomise(avatar.generator.expression_attributes, 0.3)
    randomise(avatar.generator.pose_attributes, 0.3)
    randomise(avatar.upsampler, 0.05)
    avatar.sort_by_expression_weight()
    write_avatar(folder / "splat" / "full", avatar.eval(), splat)

    tracking, arc = make_tracking(), cameras(len(SERIALS), SIZE)
    views = dict(zip(SERIALS, arc.values(), strict=True))
    write_arrays(folder / "face" / "tracking" / "FREE.npz", tracking)
    write_cameras(folder / "capture" / "cameras.json", views)
    images = (255 * avatar.render(tracking, views)).round().byte().numpy()
    rows = [np.concatenate(list(row), axis=1) for row in images]
    cv2.imwrite(str(folder / "images.png"), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
