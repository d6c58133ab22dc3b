"""Densification: when and where stage II gets more Gaussians.

By displacement (Sec. 3.2; interval, window and cap are not in the paper), and by the errors of the
images (not in the paper; after Rota Bulò et al. 2024, "Revising densification in Gaussian
splatting": an image's errors go to the Gaussians by their weights in each pixel, the set grows to
a budget).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eavatar.avatar.gaussians import Generated
from eavatar.avatar.model import Avatar
from eavatar.settings import DensifySettings, SplitSettings
from eavatar.splat.splitting import choose_by_error, choose_parents, remove, split
from eavatar.training.parallel import largest_over_processes
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
        largest_over_processes(self.peaks)
        parents = choose_parents(self.peaks, neutral.scales.detach(), settings, self.first_count)
        if not parents.any():
            self.peaks.zero_()
            return False
        split(neutral, parents, self.optimiser)
        _sort(self.avatar, self.optimiser)
        self.forget()
        return True

    def forget(self) -> None:
        """Begin anew, as the set of Gaussians is another one."""
        self.peaks = self.peaks.new_zeros(len(self.avatar.neutral))

    def state(self) -> dict[str, Any]:
        """What a resume point keeps."""
        return {"peaks": self.peaks}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, once the avatar has the Gaussians of then."""
        self.peaks = state["peaks"].to(self.peaks)


@dataclass(frozen=True)
class GaussianErrors:
    """What some images say about each Gaussian, at all timesteps looked at.

    Attributes:
        errors: (N,) sum of the pixels' errors, weighted by what the Gaussian has of a pixel.
        opacities: (N,) the largest.
    """

    errors: Tensor
    opacities: Tensor


class ErrorDensifier:
    """Splits the Gaussians that the errors of the images fall on, up to a budget, at set steps.

    It keeps nothing from step to step: when it is its turn it looks at some images.

    Args:
        settings: schedule, budget, and how many at a time.
        avatar: whose Gaussians they are; the budget refers to their present number.
        optimiser: of its parameters.
        look: at some images, chosen by the number of the step.
    """

    def __init__(
        self,
        settings: DensifySettings,
        avatar: Avatar,
        optimiser: Optimizer,
        look: Callable[[int], GaussianErrors],
    ):
        self.settings, self.avatar, self.optimiser, self.look = settings, avatar, optimiser, look
        self.most = int(settings.budget * len(avatar.neutral))

    def step(self, step: int) -> bool:
        """Split if it is time for it; returns whether the set of Gaussians is another one now."""
        settings = self.settings
        due = settings.start <= step <= settings.stop and step % settings.every == 0
        if not (settings.enabled and due):
            return False
        seen, neutral = self.look(step), self.avatar.neutral
        stay = seen.opacities >= settings.min_opacity
        errors = seen.errors[stay]
        parents = choose_by_error(errors, settings.fraction, self.most)
        if stay.all() and not parents.any():
            return False
        remove(neutral, ~stay, self.optimiser)
        split(neutral, parents, self.optimiser)
        _sort(self.avatar, self.optimiser)
        return True


def _sort(avatar: Avatar, optimiser: Optimizer) -> None:
    """Bring a set that has changed, and what the optimiser keeps for it, into its order."""
    order = avatar.sort_by_expression_weight()
    reorder_state(avatar.neutral.parameters(), order, optimiser)
