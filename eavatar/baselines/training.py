"""What the baselines' trainings share: a network, a code for each timestep, one life cycle."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eavatar.avatar.files import write_model
from eavatar.data.frames import FrameSet
from eavatar.data.loader import Loader
from eavatar.settings import HavatarSettings, NerfaceSettings, Settings
from eavatar.training.definition import define
from eavatar.training.graphs import Capacity, GrowingGraph
from eavatar.training.loop import Run, Trainable, finish, train
from eavatar.training.optimiser import AveragingAdam, FallingRates

DECAY = 0.1  # of the learning rates, in so many steps as the settings have

Values = dict[str, Tensor]


class FieldTraining(Trainable):
    """What the training loop runs: each step sees some images, each of a timestep and a camera.

    On CUDA a step is one captured graph.

    Args:
        settings: of the method.
        seed: of all random draws.
        frames: what is trained on.
        model: the network, with a buffer ``code`` (L,) for drawing; its parameters and the codes of
            the timesteps are trained.

    Attributes:
        codes: (T, L) latent code of each timestep, zero at first.
    """

    def __init__(
        self,
        settings: NerfaceSettings | HavatarSettings,
        seed: int,
        frames: FrameSet,
        model: nn.Module,
    ):
        self.seed, self.frames, self.model = seed, frames, model
        self.loader = Loader(frames, seed, settings.images_per_step, views=1)
        size = len(frames), settings.latent_size
        self.codes = nn.Parameter(torch.zeros(size, device=frames.device))
        warnings.filterwarnings("ignore", message=".*capturable=True")
        self.optimiser = AveragingAdam(
            self.groups(),
            settings.averaging,
            capturable=frames.device.type == "cuda",
        )
        self.rates = FallingRates(self.optimiser, DECAY, settings.decay_steps)

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's: parameters that share a learning rate, with it."""

    def capture(self, update: Callable[..., Values]) -> GrowingGraph[Capacity, Values]:
        """A function of capacities, which it does not use, and tensors, as a step on the device."""
        return GrowingGraph(update, captures=self.frames.device.type == "cuda")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model is as it is saved: means of its parameters, and of all codes."""
        with self.optimiser.averaged():
            self.model.get_buffer("code").copy_(self.codes.detach().mean(dim=0))
            yield

    def descend(self, losses: Values, weights: Mapping[str, float]) -> Values:
        """A step down the weighted sum of losses; all values of the step, for the log.

        Args:
            losses: by name.
            weights: likewise; a loss that this step does not have counts as zero.
        """
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        none = torch.zeros_like(total)
        values = {"loss": total, **{name: losses.get(name, none) for name in weights}}
        return {name: value.detach() for name, value in values.items()}

    def describe(self, step: int) -> str:
        return self.loader.describe(step)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "codes": self.codes.detach(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.codes.data.copy_(state["codes"])
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        self.loader.close()


def train_field(
    name: str,
    settings: NerfaceSettings | HavatarSettings,
    drawing: Settings,
    task: FieldTraining,
    output: Path,
    **inputs: str,
) -> Path:
    """Train to the last step, save, and deal with the resume points; returns the model's path.

    Args:
        name: of the method and of its block of settings.
        settings: the block.
        drawing: what the model needs of it to draw.
        task: before its first step.
        output: ``results/<subject>/<name>/<variant>``.
        inputs: digests of what is used beside the frames, by name.
    """
    definition = {**define(name, settings, task.seed, task.frames), **inputs}
    run = Run(name, settings.steps, settings.run.checkpoint_every, definition)
    with task:
        train(task, run, output)
        with task.averaged():
            blocks = {name: drawing, "training": settings}
            path = write_model(output, blocks, task.model.state_dict(), f"{name}.learning_rate")
    finish(output, run)
    return path
