"""Fine-tuning of plain splats for renderers that have no upsampler.

Every Gaussian gets another colour, opacity and size by constants that hold at all timesteps, so
that the training frames are drawn well without the upsampler. Letter: N Gaussians.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eavatar.data.frames import FrameSet
from eavatar.interop.avatar_splats import PlainSplats
from eavatar.io import Timestep
from eavatar.rendering.splatting import LOW_PASS, Gaussians, splat
from eavatar.training.losses import rgb_loss

logger = logging.getLogger(__name__)

STEPS = 300
TIMESTEPS = 24  # evenly over the training's, whose Gaussians are kept
VIEWS = 2  # per step
LEARNING_RATE, LAST_RATE = 2e-2, 1e-3  # of Adam, falling exponentially
MARGIN = 1e-4  # logits are of values at least so far from 0 and 1


class Corrections(nn.Module):
    """Constants that change the Gaussians of any timestep.

    Attributes:
        colours: (N, 3) added to the logits.
        opacities: (N,) added to the logits.
        scales: (N, 3) added to the logarithms.
    """

    def __init__(self, count: int):
        super().__init__()
        self.colours = nn.Parameter(torch.zeros(count, 3))
        self.opacities = nn.Parameter(torch.zeros(count))
        self.scales = nn.Parameter(torch.zeros(count, 3))

    def forward(self, gaussians: Gaussians) -> Gaussians:
        """The corrected Gaussians."""
        return replace(
            gaussians,
            features=_shift(gaussians.features, self.colours),
            opacities=_shift(gaussians.opacities, self.opacities),
            scales=gaussians.scales * self.scales.exp(),
        )


def _shift(values: Tensor, logits: Tensor) -> Tensor:
    return torch.sigmoid(torch.logit(values, eps=MARGIN) + logits)


def fine_tune(splats: PlainSplats, capture: Path, face: Path) -> Corrections:
    """Fit the corrections to a subject's training frames, at the size of the training.

    Args:
        splats: of the avatar.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
    Raises:
        UserError: a contract file is missing or malformed.
    """
    device, settings = splats.avatar.device, splats.avatar.settings
    # Gaussians trained with less blur than renderers add would shrink to make up for it, and leave
    # gaps where pixels are finer.
    low_pass = min(LOW_PASS, settings.low_pass * settings.upsampling**2)
    frames = FrameSet.read(capture, face, "train", settings.image_size).to(device)
    chosen = np.unique(np.linspace(0, len(frames) - 1, TIMESTEPS).round().astype(int)).tolist()
    sets = [splats(get_timestep(frames, index)) for index in chosen]
    corrections = Corrections(len(splats.avatar.neutral)).to(device)
    optimiser = torch.optim.Adam(corrections.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(
        optimiser, (LAST_RATE / LEARNING_RATE) ** (1 / STEPS)
    )
    random, start = np.random.default_rng(0), time.perf_counter()
    for _ in range(STEPS):
        number = int(random.integers(len(chosen)))
        usable = frames.usable_cameras(chosen[number])
        cameras = random.choice(usable, min(VIEWS, len(usable)), replace=False).tolist()
        loss = _loss(corrections(sets[number]), frames, chosen[number], cameras, low_pass)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    logger.info("fine-tuned for export in %.0f s", time.perf_counter() - start)
    return corrections.requires_grad_(False)


def _loss(
    gaussians: Gaussians, frames: FrameSet, timestep: int, cameras: list[int], low_pass: float
) -> Tensor:
    views = frames.views(timestep, cameras)
    drawn = splat(
        gaussians,
        frames.world_to_camera[cameras],
        frames.intrinsics[cameras],
        frames.width,
        frames.height,
        background=frames.intrinsics.new_ones(3),
        low_pass=low_pass,
    )
    return rgb_loss(drawn.features, views.images, views.visible)


def get_timestep(frames: FrameSet, index: int) -> Timestep:
    names = ("expression", "rotation", "translation", "appearance", "gaze")
    return Timestep(*(getattr(frames, name)[index].cpu().numpy() for name in names))
