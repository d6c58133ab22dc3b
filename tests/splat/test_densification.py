"""The schedule of densification, and that the avatar's order and the optimiser's agree."""

from __future__ import annotations

import pytest
import torch

from eavatar.avatar.gaussians import Generated
from eavatar.avatar.model import Avatar
from eavatar.settings import DensifySettings, SplitSettings
from eavatar.splat.densification import DisplacementDensifier, ErrorDensifier, GaussianErrors
from eavatar.training.optimiser import AveragingAdam
from tests.scenes.small_avatar import make_avatar

SETTINGS = SplitSettings(enabled=True, threshold=0.2, every=10, start=10, stop=30, cap=1.5)


def make(settings: SplitSettings) -> tuple[DisplacementDensifier, Avatar, AveragingAdam]:
    avatar = make_avatar()
    groups = [{"params": list(avatar.neutral.parameters()), "lr": 1e-3}]
    optimiser = AveragingAdam(groups, window=0.5, capturable=False)
    return DisplacementDensifier(settings, avatar, optimiser), avatar, optimiser


def displace(densifier: DisplacementDensifier, index: int, amount: float) -> None:
    displacements = torch.zeros_like(densifier.peaks)
    displacements[index] = amount
    densifier.observe(Generated(None, displacements, displacements > 0.3))  # type: ignore[arg-type]


def test_it_splits_at_its_steps_what_has_moved_since_the_last_time() -> None:
    densifier, avatar, _ = make(SETTINGS)
    first, splits = len(avatar.neutral), []
    for step in range(60):
        displace(densifier, step, 0.5 if step in (5, 15, 45) else 0.1)
        if densifier.step(step):
            splits.append(step)
            assert not densifier.peaks.any()
    assert splits == [10, 20]  # nothing has moved at 30, and 50 is too late
    assert len(avatar.neutral) == len(densifier.peaks) == first + 2


@pytest.mark.parametrize("changes", [{"enabled": False}, {"threshold": 0.9}, {"start": 11}])
def test_otherwise_nothing_changes(changes: dict[str, object]) -> None:
    densifier, avatar, _ = make(SETTINGS.model_copy(update=changes))
    positions, peaks = avatar.neutral.positions, densifier.peaks
    displace(densifier, 3, 0.5)
    assert not densifier.step(10)
    assert avatar.neutral.positions is positions and densifier.peaks is peaks


def test_state_follows_its_gaussians_through_split_and_order() -> None:
    densifier, avatar, optimiser = make(SETTINGS)
    for parameter in avatar.neutral.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.set_step(0)
    optimiser.step()  # the means are the parameters
    displace(densifier, 3, 0.5)
    assert densifier.fraction == pytest.approx(1 / len(avatar.neutral))
    assert densifier.step(10)
    for parameter in avatar.neutral.parameters():
        assert torch.equal(optimiser.state[parameter]["mean"], parameter)
    weights = avatar.arrangement.weights
    assert torch.equal(weights, weights.sort(descending=True).values)


ERRORS = DensifySettings(
    enabled=True, every=10, start=10, stop=30, fraction=0.1, budget=1.15, timesteps=1,
    min_opacity=0.05,
)  # fmt: skip


def look_at(avatar: Avatar, transparent: int) -> GaussianErrors:
    """Errors that grow with the index, so many of the first transparent."""
    numbers = torch.arange(1.0, 1.0 + len(avatar.neutral))
    return GaussianErrors(numbers, torch.where(numbers <= transparent, 0.01, 0.5))


def make_by_error(settings: DensifySettings, transparent: int) -> tuple[ErrorDensifier, Avatar]:
    _, avatar, optimiser = make(SETTINGS)
    look = lambda step: look_at(avatar, transparent)  # noqa: E731
    return ErrorDensifier(settings, avatar, optimiser, look), avatar


def test_by_error_it_grows_to_the_budget_and_stays_there() -> None:
    densifier, avatar = make_by_error(ERRORS, transparent=0)
    first = len(avatar.neutral)
    counts = [(densifier.step(step), len(avatar.neutral)) for step in (0, 5, 10, 20, 30, 40)]
    grown = first + int(0.1 * first)
    assert counts[:3] == [(False, first), (False, first), (True, grown)]
    assert counts[3:] == [(True, int(1.15 * first)), (False, counts[3][1]), (False, counts[3][1])]


def test_transparent_gaussians_make_room() -> None:
    densifier, avatar = make_by_error(ERRORS.model_copy(update={"budget": 1.0}), transparent=3)
    first = len(avatar.neutral)
    lost = avatar.neutral.positions[:3].detach().clone()
    assert densifier.step(10) and len(avatar.neutral) == first
    assert not (avatar.neutral.positions[:, None] == lost).all(dim=2).any()
    weights = avatar.arrangement.weights
    assert torch.equal(weights, weights.sort(descending=True).values)
