"""Adam that also keeps a mean of what every parameter was, which is what stage II saves.

At learning rates that get somewhere fast, parameters wander about the place they are to reach;
their mean over many steps is there long before they are (Polyak and Juditsky 1992). Not in the
paper.
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
    """Fused Adam with a mean that forgets: over about a set share of all steps so far.

    The means are part of the optimiser's state, and so of its state dictionary.

    Args:
        groups: as of `torch.optim.Adam`.
        window: the share; 0 for the parameters as they are.
        capturable: steps may be captured in a CUDA graph.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], window: float, capturable: bool):
        super().__init__(groups, fused=True, capturable=capturable)
        self.window = window
        # On the device, where a captured step sees it change.
        self.newest_weight = torch.ones((), device=self._parameters()[0].device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

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
            state = self.state[parameter]
            if MEAN in state:
                state[MEAN].lerp_(parameter, self.newest_weight)
            else:
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
