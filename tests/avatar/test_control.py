"""Control Gaussians (Eq. 9–13) against a slow loop that restates the equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eavatar.avatar.control import (
    MODES,
    control_weights,
    find_neighbours,
    propagate,
    propagate_to_all,
)

RADIUS, SIGMA = 0.3, 0.15
ALL = 1000  # neighbours: more than there are points


def random_case(count: int, seed: int, share: float = 0.3):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(count, 3, generator=generator)
    displacements = torch.randn(count, 3, generator=generator)
    controls = torch.rand(count, generator=generator) < share
    return positions, displacements, controls


def slow_propagate(positions, displacements, controls, mode):
    """Eq. 11–13 and the three readings, point by point."""
    result = displacements.clone()
    for j in range(len(positions)):
        distances = (positions - positions[j]).norm(dim=1).tolist()
        near = [
            i for i in range(len(positions)) if i != j and controls[i] and distances[i] < RADIUS
        ]
        if controls[j] or not near:
            continue
        kernel = [math.exp(-((distances[i] / SIGMA) ** 2)) for i in near]
        mean = sum(k / sum(kernel) * displacements[i] for k, i in zip(kernel, near, strict=True))
        nearest = min(distances[i] for i in near)
        x = min(max((RADIUS - nearest) / (RADIUS / 2), 0), 1)
        share = 3 * x**2 - 2 * x**3
        result[j] = {
            "replace": mean,
            "add": displacements[j] + mean,
            "blend": (1 - share) * displacements[j] + share * mean,
        }[mode]
    return result


@pytest.mark.parametrize("mode", MODES)
def test_equals_slow_loop(mode):
    positions, displacements, controls = random_case(120, seed=0)
    neighbours = find_neighbours(positions, RADIUS, ALL)
    fast = propagate(displacements, controls, neighbours, RADIUS, SIGMA, mode)
    slow = slow_propagate(positions, displacements, controls, mode)
    # float32 sums of about twenty terms of size one
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    assert not torch.equal(fast, displacements)


def test_pairs_are_all_within_the_radius_or_the_nearest():
    positions = random_case(80, seed=1)[0]
    distances = torch.cdist(positions, positions)
    distances.fill_diagonal_(torch.inf)
    neighbours = find_neighbours(positions, RADIUS, ALL)
    found = torch.zeros_like(distances, dtype=torch.bool)
    present = neighbours.squared.isfinite()
    points = torch.arange(80)[:, None].expand_as(present)
    found[points[present], neighbours.indices[present]] = True
    assert torch.equal(found, distances < RADIUS)

    few = find_neighbours(positions, RADIUS, 3)
    assert few.indices.shape == (80, 3)
    for point in range(len(positions)):
        nearest = distances[point].sort().values[:3].square()
        kept = few.squared[point][few.squared[point].isfinite()]
        torch.testing.assert_close(kept, nearest[nearest < RADIUS**2], rtol=1e-4, atol=1e-6)


def test_neighbours_of_coinciding_points():
    """Children start close together; a duplicate must not take the place of the point itself."""
    neighbours = find_neighbours(torch.zeros(3, 3), RADIUS, ALL)
    assert neighbours.indices.sort(dim=1).values.tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("mode", MODES)
def test_gradients_match_finite_differences(mode):
    positions, displacements, controls = random_case(12, seed=2)
    neighbours = find_neighbours(positions, 0.6, ALL)
    leaf = displacements.double().requires_grad_()
    neighbours = type(neighbours)(neighbours.indices, neighbours.squared.double())
    assert torch.autograd.gradcheck(
        lambda values: propagate(values, controls, neighbours, 0.6, 0.3, mode), leaf
    )


@settings(max_examples=30)
@given(
    count=st.integers(2, 60),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    sigma=st.floats(0.005, 1),
)
def test_weights_sum_to_one(count, seed, share, sigma):
    positions, _, controls = random_case(count, seed, share)
    neighbours = find_neighbours(positions, RADIUS, ALL)
    squared = torch.where(controls[neighbours.indices], neighbours.squared, torch.inf)
    nearest = torch.cat([squared, torch.full((count, 1), torch.inf)], dim=1).amin(dim=1)
    weights = control_weights(squared, nearest, sigma)
    assert torch.all(weights >= 0) and torch.all(weights[~squared.isfinite()] == 0)
    # weights are float32 quotients; at most 60 of them are added
    torch.testing.assert_close(weights.sum(1), nearest.isfinite().float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_all_points_at_once_gives_the_same(mode):
    """CUDA takes all points, the CPU only those with controls around them."""
    positions, displacements, controls = random_case(120, seed=3, share=0.02)
    neighbours = find_neighbours(positions, RADIUS, ALL)
    few = propagate(displacements, controls, neighbours, RADIUS, SIGMA, mode)
    whole = propagate_to_all(displacements, controls, neighbours, RADIUS, SIGMA, mode)
    assert not torch.equal(few, displacements) and torch.equal(few, whole)


@settings(max_examples=20)
@given(count=st.integers(2, 60), seed=st.integers(0, 1000), mode=st.sampled_from(sorted(MODES)))
def test_without_controls_nothing_changes(count, seed, mode):
    positions, displacements, controls = random_case(count, seed, share=0)
    neighbours = find_neighbours(positions, RADIUS, ALL)
    result = propagate(displacements, controls, neighbours, RADIUS, SIGMA, mode)
    assert torch.equal(result, displacements)


@settings(max_examples=20)
@given(count=st.integers(2, 60), seed=st.integers(0, 1000), mode=st.sampled_from(sorted(MODES)))
def test_controls_keep_their_own_and_order_does_not_matter(count, seed, mode):
    positions, displacements, controls = random_case(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def run(rows):
        neighbours = find_neighbours(positions[rows], RADIUS, ALL)
        return propagate(displacements[rows], controls[rows], neighbours, RADIUS, SIGMA, mode)

    result = run(torch.arange(count))
    assert torch.equal(result[controls], displacements[controls])
    # the sums run in another order
    torch.testing.assert_close(run(order), result[order], rtol=0, atol=1e-5)


def test_blend_is_continuous_at_the_radius_and_replace_tears():
    displacements = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    controls = torch.tensor([True, False])

    def moved(distance, mode):
        positions = torch.tensor([[0.0, 0, 0], [distance, 0, 0]])
        neighbours = find_neighbours(positions, RADIUS, ALL)
        return propagate(displacements, controls, neighbours, RADIUS, SIGMA, mode)[1, 0].item()

    assert moved(0.999 * RADIUS, "replace") == 1 and moved(1.001 * RADIUS, "replace") == 0
    assert moved(0.49 * RADIUS, "blend") == 1 and moved(1.001 * RADIUS, "blend") == 0
    assert moved(0.999 * RADIUS, "blend") < 1e-4  # the cubic is 3x² for small x = 0.002
