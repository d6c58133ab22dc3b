"""The smallest training there is: what loop and checkpoints are tested with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from eavatar.training.checkpoints import Run
from eavatar.training.loop import Trainable, seed_everything, train


class Regression(Trainable):
    """A linear fit to random points, with Adam, that can be told to fail at a step."""

    def __init__(self, killed_at: int = -1, poisoned_at: int = -1):
        seed_everything(3)
        self.model = nn.Linear(4, 1)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.killed_at, self.poisoned_at = killed_at, poisoned_at
        self.steps: list[int] = []

    def step(self, step: int) -> dict[str, torch.Tensor]:
        if step == self.killed_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        points = torch.randn(8, 4)
        loss = (self.model(points) - points.sum(dim=1, keepdim=True)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss, "rgb": loss * float("nan") if step == self.poisoned_at else loss}

    def describe(self, step: int) -> str:
        return f"EXP-1 timestep {step} in 222200037"

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        pass


def run_of(steps: int = 25, every: int = 5, bound: str | None = None, **definition: str) -> Run:
    return Run("test", steps, every, definition, bound)


def run(task: Regression, folder: Path, given: Run | None = None) -> Regression:
    train(task, given or run_of(), folder)
    return task


def interrupted(folder: Path, given: Run | None = None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Regression(killed_at=13), folder, given)


def read_log(folder: Path) -> pd.DataFrame:
    """The log without its times, which differ from run to run."""
    return pd.read_csv(folder / "log.csv").drop(columns="seconds")
