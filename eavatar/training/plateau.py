"""Ends a training where frames that it does not see no longer improve; not in the paper.

Some frames, of training cameras at training timesteps, are held back. From time to time the means
of the parameters are measured on them. Once the last part of the steps has brought next to nothing,
the learning rates fall, and the training is over when they have. Until then they stay as they are:
a rate that falls from the first step on would have to know the last one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eavatar.data.frames import FrameSet
from eavatar.settings import PlateauSettings
from eavatar.training.parallel import largest_over_processes

logger = logging.getLogger(__name__)

PART = 0.25  # of the steps so far, which must have brought something
MIN_LOOKS = 4  # before that is judged: the first steps are not alike
ENDS = "the training ends where it no longer improves, at the latest after so many steps"

Pairs = list[tuple[int, int]]


def hold_back(frames: FrameSet, count: int) -> tuple[FrameSet, Pairs]:
    """Frames to train on, and the (timestep, camera) of up to so many others, evenly spread.

    Of each timestep one camera at most, and never the last usable one: none where there is but one
    camera, and then the training makes all its steps.
    """
    able = np.flatnonzero(frames.usable.sum(axis=1) > 1)
    count = min(count, len(able))
    if count == 0:
        logger.warning("no timestep has two usable cameras: nothing is held back, all steps made")
    times = able[np.linspace(0, len(able) - 1, count).astype(int)] if count else able
    usable, pairs = frames.usable.copy(), []
    for number, timestep in enumerate(times.tolist()):
        cameras = np.flatnonzero(frames.usable[timestep])
        camera = int(cameras[number * len(cameras) // count])
        usable[timestep, camera] = False
        pairs.append((timestep, camera))
    return replace(frames, usable=usable), pairs


def mean_squared_error(images: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """() of images (..., H, W, 3) over the weighted pixels (..., H, W)."""
    squared = (images - truth).square().mean(dim=-1)
    return (squared * weight).sum() / weight.sum().clamp(min=1)


class Plateau:
    """When a training is over.

    Args:
        settings: where it ends.
        steps: after which it is over in any case.
        fall: steps in which the learning rates fall / steps before; 0 if they do not.

    Attributes:
        looks: what was measured, dB, by the number of steps made.
        found: steps made when the held-back frames no longer improved; None so far.
    """

    def __init__(self, settings: PlateauSettings, steps: int, fall: float):
        self.settings, self.steps, self.fall = settings, steps, fall
        self.looks: dict[int, float] = {}
        self.found: int | None = None

    @property
    def begin(self) -> int:
        """Steps before the learning rates fall: all of them fall where nothing is held back."""
        if not self.settings.enabled:
            return 0
        latest = int(self.steps / (1 + self.fall))
        return latest if self.found is None else min(self.found, latest)

    @property
    def end(self) -> int:
        """Steps in all, as far as is known."""
        if self.found is None:
            return self.steps
        return min(self.steps, math.ceil((1 + self.fall) * self.begin))

    def is_due(self, made: int) -> bool:
        """Whether to look after so many steps."""
        settings = self.settings
        return settings.enabled and self.found is None and made % settings.every == 0

    def look(self, made: int, errors: Sequence[Tensor]) -> None:
        """Take note of the mean squared errors of the held-back frames after so many steps."""
        if not errors:
            return
        error = largest_over_processes(torch.stack(list(errors)).mean())
        self.looks[made] = -10 * math.log10(max(error.item(), 1e-10))
        before = [value for step, value in self.looks.items() if step <= (1 - PART) * made]
        if len(self.looks) < MIN_LOOKS or not before:
            return
        if max(self.looks.values()) - max(before) < self.settings.gain:
            self.found = made
            logger.info(
                "held-back frames at %.2f dB no longer improve after %d steps; the last step is %d",
                self.looks[made], made, self.end,
            )  # fmt: skip

    def state(self) -> dict[str, list[float]]:
        """For a resume point."""
        return {
            "steps": list(self.looks),
            "values": list(self.looks.values()),
            "found": [] if self.found is None else [self.found],
        }

    def restore(self, state: dict[str, list[float]]) -> None:
        steps = map(int, state["steps"])
        self.looks = dict(zip(steps, state["values"], strict=True))
        self.found = next(map(int, state["found"]), None)
