"""Splitting: the image stays, children inherit attributes and optimiser state, the cap holds."""

from __future__ import annotations

import pytest
import torch

from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.rendering.splatting import Gaussians, splat
from eavatar.settings import SplitSettings
from eavatar.splat.splitting import child_opacity, choose_by_error, choose_parents, remove, split
from eavatar.training.optimiser import AveragingAdam
from eavatar.transforms import quaternion_to_matrix

SETTINGS = SplitSettings(enabled=True, threshold=0.2, every=10, start=0, stop=100, cap=1.5)
SIZE = 96
INTRINSICS = torch.tensor([[[300.0, 0, SIZE / 2], [0, 300, SIZE / 2], [0, 0, 1]]])


def random_set(count: int, opacity: float, spread: float = 0.08) -> NeutralGaussians:
    torch.manual_seed(0)
    positions = spread * torch.randn(count, 3) + torch.tensor([0.0, 0, 1])
    scales = torch.log(torch.tensor([0.03, 0.015, 0.01])).repeat(count, 1)
    neutral = NeutralGaussians(positions, torch.randn(count, 4), scales, opacity)
    torch.nn.init.normal_(neutral.rotations)
    return neutral


def draw_image(neutral: NeutralGaussians) -> torch.Tensor:
    gaussians = Gaussians(
        neutral.positions.detach(),
        neutral.rotations.detach(),
        neutral.scales.detach().exp(),
        torch.sigmoid(neutral.opacities.detach())[:, 0],
        torch.sigmoid(neutral.features.detach())[:, :3],
    )
    return splat(gaussians, torch.eye(4)[None], INTRINSICS, SIZE, SIZE, torch.ones(3)).features


def adam(neutral: NeutralGaussians) -> AveragingAdam:
    groups = [{"params": list(neutral.parameters()), "lr": 1e-3}]
    return AveragingAdam(groups, window=0.5, capturable=False)


@pytest.mark.parametrize(
    ("opacity", "fraction", "largest"),
    # Two halves composited are not the whole: the difference, seen alone, grows with opacity.
    [(0.1, 0.1, 0.01), (0.3, 0.1, 0.02), (0.6, 0.1, 0.05), (0.95, 0.12, 0.2)],
)
def test_image_of_one_gaussian_stays(opacity, fraction, largest):
    """Its absolute change is a tenth of what the Gaussian draws (0.06 to 0.10 measured)."""
    neutral = random_set(1, opacity, spread=0)
    before = draw_image(neutral)
    split(neutral, torch.tensor([True]), adam(neutral))
    difference = (draw_image(neutral) - before).abs()
    assert len(neutral) == 2 and not torch.equal(before, torch.ones_like(before))
    assert difference.sum() < fraction * (before - 1).abs().sum() and difference.max() < largest


def test_image_of_a_surface_stays():
    """Where Gaussians overlap as on a surface, splitting all of them is hardly seen."""
    neutral = random_set(600, opacity=0.5, spread=0.06)
    before = draw_image(neutral)
    split(neutral, torch.ones(600, dtype=torch.bool), adam(neutral))
    difference = (draw_image(neutral) - before).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.1


def test_coverage_is_kept():
    """The closed form of `child_opacity` against sums over a fine grid, in parent deviations."""
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    shrink = 0.75**0.5
    for opacity in (0.05, 0.5, 0.99):
        child = child_opacity(torch.tensor(opacity, dtype=torch.float64))
        pair = [child * torch.exp(-(((x - d) / shrink) ** 2 + y**2) / 2) for d in (-0.5, 0.5)]
        together = 1 - (1 - pair[0]) * (1 - pair[1])
        parent = opacity * torch.exp(-(x**2 + y**2) / 2)
        assert together.sum().item() == pytest.approx(parent.sum().item(), rel=1e-4)


def test_children_take_over_position_moments_and_attributes():
    neutral = random_set(5, opacity=0.4)
    old = {name: value.detach().clone() for name, value in neutral.named_parameters()}
    parents = torch.tensor([False, True, False, False, True])
    split(neutral, parents, adam(neutral))
    new = dict(neutral.named_parameters())
    assert len(neutral) == 7
    for name, value in new.items():
        assert torch.equal(value[:3], old[name][~parents]), name
    first, second = new["positions"][3:5], new["positions"][5:7]
    torch.testing.assert_close((first + second) / 2, old["positions"][parents])
    assert torch.equal(new["features"][3:5], old["features"][parents])
    assert torch.equal(new["rotations"][5:7], old["rotations"][parents])
    # along the longest axis the children's variance and offset add up to the parent's variance
    offsets = (first - second) / 2
    axis = quaternion_to_matrix(old["rotations"][parents])[:, :, 0]
    variance = old["scales"][parents].exp()[:, 0].square()
    children = new["scales"][3:5].exp()[:, 0].square()
    torch.testing.assert_close(children + offsets.square().sum(dim=1), variance)
    torch.testing.assert_close((offsets * axis).sum(1).abs(), offsets.norm(dim=1))
    assert torch.equal(neutral.anchors, neutral.positions)


def test_optimiser_goes_on():
    """Rows that stay keep moments and means; children start with no moments, as their own means;
    the next step works."""
    neutral = random_set(6, opacity=0.4)
    optimiser = adam(neutral)
    for step in range(3):
        optimiser.zero_grad()
        sum((value**2).sum() for value in neutral.parameters()).backward()
        optimiser.set_step(step)
        optimiser.step()
    moments = {n: optimiser.state[p]["exp_avg"].clone() for n, p in neutral.named_parameters()}
    means = {n: optimiser.state[p]["mean"].clone() for n, p in neutral.named_parameters()}
    parents = torch.tensor([True, False, False, True, False, False])
    split(neutral, parents, optimiser)
    for name, parameter in neutral.named_parameters():
        state = optimiser.state[parameter]
        assert torch.equal(state["exp_avg"][:4], moments[name][~parents])
        assert torch.equal(state["exp_avg_sq"][4:], torch.zeros_like(parameter[4:]))
        assert state["exp_avg"].shape == parameter.shape and state["step"] == 3
        assert torch.equal(state["mean"][:4], means[name][~parents])
        assert torch.equal(state["mean"][4:], parameter[4:])
    before = neutral.positions.detach().clone()
    sum((value**2).sum() for value in neutral.parameters()).backward()
    optimiser.step()
    assert not torch.equal(before, neutral.positions)


def test_only_the_displaced_and_the_largest_within_the_cap():
    displacements = torch.tensor([0.1, 0.3, 0.5, 0.25, 0.9, 0.19])
    scales = torch.tensor([9.0, 1, 2, 5, 3, 8])[:, None].repeat(1, 3)

    def chosen(first_count: int) -> list[int]:
        return choose_parents(displacements, scales, SETTINGS, first_count).nonzero()[:, 0].tolist()

    assert chosen(first_count=10) == [1, 2, 3, 4]  # room for all
    assert chosen(first_count=6) == [2, 3, 4]  # room for three: the largest
    assert chosen(first_count=4) == []  # full


def test_the_largest_errors_within_fraction_and_budget():
    errors = torch.tensor([0.1, 0.0, 0.5, 0.2, 0.0, 0.9])

    def chosen(fraction: float, most: int) -> list[int]:
        return choose_by_error(errors, fraction, most).nonzero()[:, 0].tolist()

    assert chosen(0.5, most=20) == [2, 3, 5]
    assert chosen(0.5, most=7) == [5]  # room for one
    assert chosen(0.5, most=5) == []  # more than the budget already
    assert chosen(1.0, most=20) == [0, 2, 3, 5]  # never one without an error


def test_what_is_removed_is_gone_and_the_others_stay():
    neutral = random_set(6, opacity=0.4)
    optimiser = adam(neutral)
    for parameter in neutral.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.set_step(0)
    optimiser.step()
    before = {name: value.detach().clone() for name, value in neutral.named_parameters()}
    removed = torch.tensor([True, False, False, True, False, False])
    remove(neutral, removed, optimiser)
    assert len(neutral) == 4
    for name, value in neutral.named_parameters():
        assert torch.equal(value, before[name][~removed])
        assert len(optimiser.state[value]["exp_avg"]) == len(optimiser.state[value]["mean"]) == 4
