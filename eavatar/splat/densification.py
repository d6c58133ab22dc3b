"""Displacement-driven densification: when and where stage II gets more Gaussians (Sec. 3.2).

Interval, window and cap are not in the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eavatar.avatar.gaussians import Generated
from eavatar.avatar.model import Avatar
from eavatar.settings import SplitSettings
from eavatar.splat.splitting import choose_parents, split
from eavatar.training.surgery import reorder_state


class DisplacementDensifier:
    """Splits the Gaussians whose raw expression displacement exceeds τ_split, at set steps.

    Args:
        settings: threshold, schedule and cap.
        avatar: whose Gaussians they are; the cap refers to their present number.
        optimiser: of its parameters.

    Attributes:
        peaks: (N,) largest displacement of each Gaussian since the last split; between two splits
            always the same tensor, as a captured step writes to it.
    """

    def __init__(self, settings: SplitSettings, avatar: Avatar, optimiser: Optimizer):
        self.settings, self.avatar, self.optimiser = settings, avatar, optimiser
        self.first_count = len(avatar.neutral)
        self.peaks = avatar.landmarks.new_zeros(self.first_count)

    def observe(self, generated: Generated) -> None:
        """Take note of the Gaussians of a step."""
        torch.maximum(self.peaks, generated.displacements, out=self.peaks)

    @property
    def fraction(self) -> Tensor:
        """() fraction of the Gaussians above τ_split."""
        return (self.peaks > self.settings.threshold).float().mean()

    def step(self, step: int) -> bool:
        """Split if it is time for it; returns whether the set of Gaussians is another one now."""
        settings, neutral = self.settings, self.avatar.neutral
        due = settings.start <= step <= settings.stop and step % settings.every == 0
        if not (settings.enabled and due and step > 0):
            return False
        parents = choose_parents(self.peaks, neutral.scales.detach(), settings, self.first_count)
        if not parents.any():
            self.peaks.zero_()
            return False
        split(neutral, parents, self.optimiser)
        order = self.avatar.sort_by_expression_weight()
        reorder_state(neutral.parameters(), order, self.optimiser)
        self.peaks = self.peaks.new_zeros(len(neutral))
        return True

    def state(self) -> dict[str, Any]:
        """What a resume point keeps."""
        return {"peaks": self.peaks}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, once the avatar has the Gaussians of then."""
        self.peaks = state["peaks"].to(self.peaks)
