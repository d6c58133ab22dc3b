"""Rows of parameters and of an optimiser's state: what stays, what is new, what moves."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from eavatar.training.optimiser import AveragingAdam
from eavatar.training.surgery import reorder_state, replace_rows


def trained() -> tuple[dict[str, Parameter], AveragingAdam]:
    """Two parameters of four rows after two steps."""
    torch.manual_seed(0)
    parameters = {"points": Parameter(torch.randn(4, 3)), "opacities": Parameter(torch.randn(4, 1))}
    groups = [{"params": [parameter], "lr": 0.1} for parameter in parameters.values()]
    optimiser = AveragingAdam(groups, window=0.5, capturable=False)
    for step in range(2):
        optimiser.zero_grad()
        sum((value**2).sum() for value in parameters.values()).backward()
        optimiser.set_step(step)
        optimiser.step()
    return parameters, optimiser


def test_rows_stay_with_their_state_and_new_ones_begin() -> None:
    parameters, optimiser = trained()
    kept = torch.tensor([3, 0])
    fresh = {"points": torch.ones(1, 3), "opacities": torch.zeros(1, 1)}
    before = {
        name: (value.detach().clone(), {k: v.clone() for k, v in optimiser.state[value].items()})
        for name, value in parameters.items()
    }
    replace_rows(parameters, kept, fresh, optimiser)
    for name, value in parameters.items():
        old, state = before[name]
        assert torch.equal(value, torch.cat([old[kept], fresh[name]]))
        new = optimiser.state[value]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(new[key], torch.cat([state[key][kept], 0 * fresh[name]])), key
        assert torch.equal(new["mean"], torch.cat([state["mean"][kept], fresh[name]]))
        assert new["step"] == 2


def test_an_optimiser_without_a_step_has_nothing_to_change() -> None:
    parameter = Parameter(torch.randn(4, 3))
    optimiser = AveragingAdam([{"params": [parameter], "lr": 0.1}], 0.5, capturable=False)
    replace_rows({"points": parameter}, torch.tensor([1]), {"points": torch.ones(1, 3)}, optimiser)
    reorder_state([parameter], torch.tensor([1, 0]), optimiser)
    assert len(parameter) == 2 and not optimiser.state


def test_state_follows_an_order() -> None:
    parameters, optimiser = trained()
    order = torch.tensor([2, 0, 3, 1])
    means = [optimiser.state[value]["mean"].clone() for value in parameters.values()]
    reorder_state(parameters.values(), order, optimiser)
    for value, mean in zip(parameters.values(), means, strict=True):
        assert torch.equal(optimiser.state[value]["mean"], mean[order])
