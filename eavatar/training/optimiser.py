"""Adam with weight averaging, which is what both stages save, and falling learning rates.

At high learning rates the iterates oscillate around the optimum; their mean over many steps is near
it long before they are (Polyak and Juditsky 1992). It is an EMA whose window grows with the
training. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MOMENTS = {"exp_avg", "exp_avg_sq"}  # what Adam keeps for each value of a parameter
MEAN = "mean"  # what is kept here beside them, in the same place


class AveragingAdam(torch.optim.Adam):
    """Fused Adam with an EMA of each parameter, over about a set fraction of all steps so far.

    The means are part of the optimiser's state, and so of its state dictionary.

    Args:
        groups: as of `torch.optim.Adam`.
        window: the fraction; 0 for the parameters as they are.
        capturable: steps may be captured in a CUDA graph.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], window: float, capturable: bool):
        super().__init__(groups, fused=True, capturable=capturable)
        self.window = window
        # On the device, where a captured step sees it change.
        self.newest_weight = torch.ones((), device=self._parameters()[0].device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [parameter.grad for parameter in self._parameters() if parameter.grad is not None]

    def set_step(self, step: int) -> None:
        """Tell how many steps came before the next one."""
        self.newest_weight.fill_(1 / (1 + self.window * step))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of Adam, of which the means then take note."""
        super().step(closure)
        if self.window == 0:
            return
        for parameter in self._parameters():
            state = self.state.get(parameter)
            if state and MEAN in state:
                state[MEAN].lerp_(parameter, self.newest_weight)
            elif state:  # no step has moved the others yet
                state[MEAN] = parameter.detach().clone()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are their means, in place."""
        parameters = [p for p in self._parameters() if MEAN in self.state.get(p, {})]
        kept = [parameter.detach().clone() for parameter in parameters]
        _fill(parameters, [self.state[parameter][MEAN] for parameter in parameters])
        try:
            yield
        finally:
            _fill(parameters, kept)


@torch.no_grad()
def _fill(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class FallingRates:
    """Learning rates of an optimiser's groups that fall exponentially over a part of a training.

    On CUDA they are tensors, where a captured step sees them change.

    Args:
        optimiser: its groups hold the first rates.
        final: factor of all of them at the end; 1 leaves them as they are.
        steps: of the training.

    Attributes:
        begin: steps before they fall.
        end: steps when they have fallen.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, final: float, steps: int):
        self.optimiser, self.final = optimiser, final
        self.begin, self.end = 0, steps
        groups = optimiser.param_groups
        self.rates = [group["lr"] for group in groups]
        self.present = [torch.tensor(g["lr"], device=g["params"][0].device) for g in groups]

    def set_step(self, step: int) -> None:
        """Tell how many steps came before the next one."""
        factor = self.final ** (max(step - self.begin, 0) / (self.end - self.begin))
        groups = zip(self.optimiser.param_groups, self.present, self.rates, strict=True)
        for group, present, rate in groups:
            present.fill_(rate * factor)
            group["lr"] = present if present.is_cuda else present.item()
