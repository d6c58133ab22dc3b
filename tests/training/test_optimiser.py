"""Means of parameters beside Adam."""

from __future__ import annotations

from io import BytesIO

import pytest
import torch
from torch import Tensor

from eavatar.training.optimiser import AveragingAdam


def make(window: float) -> tuple[AveragingAdam, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return AveragingAdam([{"params": [parameter], "lr": 0.1}], window, capturable=False), parameter


def run(optimiser: AveragingAdam, parameter: Tensor, steps: range) -> list[Tensor]:
    """What the parameter was after each step."""
    values = []
    for step in steps:
        optimiser.zero_grad()
        (parameter**2).sum().backward()
        optimiser.set_step(step)
        optimiser.step()
        values.append(parameter.detach().clone())
    return values


def mean_of(optimiser: AveragingAdam, parameter: Tensor) -> Tensor:
    with optimiser.averaged():
        return parameter.detach().clone()


def test_steps_are_those_of_adam() -> None:
    optimiser, parameter = make(0.5)
    plain = torch.nn.Parameter(parameter.detach().clone())
    adam = torch.optim.Adam([plain], lr=0.1, fused=True)
    run(optimiser, parameter, range(5))
    for _ in range(5):
        adam.zero_grad()
        (plain**2).sum().backward()
        adam.step()
    assert torch.equal(parameter, plain)


def test_mean_is_the_recursion() -> None:
    optimiser, parameter = make(0.5)
    first, *others = run(optimiser, parameter, range(12))
    expected = first
    for step, value in enumerate(others, start=1):
        expected = expected + (value - expected) / (1 + 0.5 * step)
    torch.testing.assert_close(mean_of(optimiser, parameter), expected)
    assert torch.equal(parameter, others[-1])  # as it was


@pytest.mark.parametrize("window", [0.05, 0.2])
def test_mean_is_over_about_the_window(window: float) -> None:
    """On a ramp it lags behind by the mean age of what it holds."""
    steps = 4000
    optimiser, parameter = make(window)
    for step in range(steps):
        parameter.data.fill_(step)
        parameter.grad = torch.zeros_like(parameter)
        optimiser.set_step(step)
        optimiser.step()
    age = steps - 1 - mean_of(optimiser, parameter)[0].item()
    # Weights of a power law have a mean age of the window / (1 + the window) of the steps.
    assert age / steps == pytest.approx(window / (1 + window), rel=0.05)


def test_without_a_window_the_mean_is_the_parameter() -> None:
    optimiser, parameter = make(0)
    last = run(optimiser, parameter, range(4))[-1]
    assert torch.equal(mean_of(optimiser, parameter), last)


def test_means_go_on_from_a_saved_state() -> None:
    whole, first = make(0.3)
    part, second = make(0.3)
    run(whole, first, range(8))
    run(part, second, range(5))
    file = BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    later, third = make(0.3)
    third.data.copy_(second)
    later.load_state_dict(torch.load(file, weights_only=True))
    run(later, third, range(5, 8))
    assert torch.equal(mean_of(later, third), mean_of(whole, first))


def test_the_mean_is_put_away_when_saving_fails() -> None:
    optimiser, parameter = make(0.5)
    last = run(optimiser, parameter, range(6))[-1]
    with pytest.raises(RuntimeError, match="disk"), optimiser.averaged():
        assert not torch.equal(parameter, last)
        raise RuntimeError("disk is full")
    assert torch.equal(parameter, last)


def test_before_the_first_step_there_is_no_mean() -> None:
    optimiser, parameter = make(0.5)
    before = parameter.detach().clone()
    assert torch.equal(mean_of(optimiser, parameter), before)
