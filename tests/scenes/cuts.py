"""A training that is cut off again and again, and started again each time."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest

from eavatar.errors import Interrupted
from eavatar.training.loop import Trainable

CUTS = 10
WAYS = (signal.SIGTERM, signal.SIGUSR1, None)  # the last is Ctrl-C, which some shells ignore


def train_in_pieces(
    monkeypatch: pytest.MonkeyPatch, kind: type[Trainable], steps: int, train: Callable[[], object]
) -> list[int]:
    """Call `train` until it ends, while signals come at ten random steps; returns the first step of
    each call."""
    cuts = random.Random(0).sample(range(steps - 1), CUTS)
    ways = {step: WAYS[index % len(WAYS)] for index, step in enumerate(cuts)}
    seen: list[int] = []
    whole = kind.step

    def step(task: Trainable, number: int) -> object:
        seen.append(number)
        if number in ways:
            way = ways.pop(number)
            if way is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), way)
        return whole(task, number)

    monkeypatch.setattr(kind, "step", step)
    firsts = []
    for _ in range(CUTS + 1):
        begun = len(seen)
        try:
            train()
        except (Interrupted, KeyboardInterrupt):
            continue
        finally:
            firsts.append(seen[begun])
    assert not ways and len(firsts) == CUTS + 1
    return firsts
