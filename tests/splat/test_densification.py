"""The schedule of densification, and that the avatar's order and the optimiser's agree."""

from __future__ import annotations

import pytest
import torch

from eavatar.avatar.gaussians import Generated
from eavatar.avatar.model import Avatar
from eavatar.settings import SplitSettings
from eavatar.splat.densification import DisplacementDensifier
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
