"""Change rows of parameters together with what an optimiser keeps for each of their values.

For densification, whatever its rule. Parameters stay the same objects, as the optimiser knows them
by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from eavatar.training.optimiser import MEAN, MOMENTS


@torch.no_grad()
def replace_rows(
    parameters: Mapping[str, Parameter],
    kept: Tensor,
    fresh: Mapping[str, Tensor],
    optimiser: Optimizer,
) -> None:
    """Keep some rows of parameters (N, ·), in a new order, and append others, in place.

    Moments and means stay with the rows that stay; the others have no moments yet and are their own
    means.

    Args:
        parameters: by name.
        kept: (M,) indices of rows.
        fresh: (F, ·) of each parameter, by its name.
        optimiser: of the parameters, whether it has made a step or not.
    """
    for name, parameter in parameters.items():
        others = fresh[name]
        state = optimiser.state.get(parameter, {})
        for key in (MOMENTS | {MEAN}) & state.keys():
            first = others if key == MEAN else torch.zeros_like(others)
            state[key] = torch.cat([state[key][kept], first])
        parameter.data, parameter.grad = torch.cat([parameter[kept], others]), None


@torch.no_grad()
def reorder_state(parameters: Iterable[Parameter], order: Tensor, optimiser: Optimizer) -> None:
    """Bring moments and means into the order that the rows of the parameters have been given.

    Args:
        parameters: each (N, ·), in the new order.
        order: (N,) the former index of each row.
        optimiser: of the parameters.
    """
    for parameter in parameters:
        state = optimiser.state.get(parameter, {})
        for key in (MOMENTS | {MEAN}) & state.keys():
            state[key] = state[key][order]
