from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from eavatar.training.graphs import (
    PLAIN_CALLS,
    Capacity,
    Captured,
    GrowingGraph,
    PairCapacity,
)

gpu = [
    pytest.mark.gpu,
]
on_cuda = pytest.param("cuda", marks=gpu)


def make_network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(device)


def make_inputs(count: int) -> list[Tensor]:
    return list(torch.randn(count, 8, 5, generator=torch.Generator().manual_seed(1)))


class Training:
    """A small regression whose steps are written as `Captured` wants them."""

    def __init__(self, device: str):
        self.network = make_network(device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=1e-2, fused=True, capturable=device == "cuda"
        )

    def step(self, inputs: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.network(inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("device", ["cpu", on_cuda])
def test_a_captured_forward_gives_what_the_function_gives(device: str) -> None:
    network, inputs = make_network(device), make_inputs(4)
    with torch.no_grad():
        captured = Captured(network, inputs[0].to(device))
        for given in inputs:
            torch.testing.assert_close(captured(given.to(device)), network(given.to(device)))


@pytest.mark.parametrize("device", ["cpu", on_cuda])
def test_captured_training_is_training(device: str) -> None:
    """Captured steps after the warm-up end where as many plain steps end."""
    inputs = [given.to(device) for given in make_inputs(6)]
    plain, graphed = Training(device), Training(device)
    warm_up = 2
    captured = Captured(graphed.step, inputs[0], warm_up=warm_up)
    for _ in range(warm_up if device == "cuda" else 0):
        plain.step(inputs[0])
    for given in inputs:
        # Cloned, as the next call overwrites it.
        torch.testing.assert_close(captured(given).clone(), plain.step(given))
    for ours, theirs in zip(graphed.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_runs_before_the_first_call_on_the_cpu() -> None:
    training = Training("cpu")
    before = copy.deepcopy(training.network.state_dict())
    captured = Captured(training.step, make_inputs(1)[0])
    assert all(torch.equal(before[k], v) for k, v in training.network.state_dict().items())
    captured(make_inputs(1)[0])
    assert not torch.equal(before["0.weight"], training.network.state_dict()["0.weight"])


@pytest.mark.parametrize("device", ["cpu", on_cuda])
def test_another_shape_is_refused(device: str) -> None:
    captured = Captured(torch.add, torch.zeros(2, 3, device=device), torch.zeros(3, device=device))
    with pytest.raises(ValueError, match=r"\(1, 3\)"):  # which copying would broadcast
        captured(torch.zeros(1, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="captured for"):
        captured(torch.zeros(2, 3))


@pytest.mark.gpu
def test_outputs_are_static_and_inputs_may_come_from_the_host() -> None:
    captured = Captured(torch.neg, torch.zeros(3, device="cuda"))
    first = captured(torch.ones(3))
    assert first.tolist() == [-1, -1, -1]
    second = captured(torch.full((3,), 2.0))
    assert second is first
    assert first.tolist() == [-2, -2, -2]


@pytest.mark.parametrize("device", ["cpu", on_cuda])
def test_a_released_function_runs_without_a_graph(device: str) -> None:
    captured = Captured(torch.neg, torch.zeros(3, device=device))
    captured.release()
    captured.release()
    assert captured(torch.ones(3, device=device)).tolist() == [-1, -1, -1]


@pytest.mark.gpu
def test_release_gives_memory_back() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    size = 64 * 2**20
    captured = Captured(lambda x: (x + 1) * 2, torch.zeros(size // 4, device="cuda"))
    assert torch.cuda.memory_reserved() >= before + 2 * size  # the input's copy and the output
    captured.release()
    torch.cuda.empty_cache()
    # Libraries may have taken workspaces meanwhile: less than a buffer of the graph.
    assert torch.cuda.memory_reserved() < before + size


@dataclass(frozen=True)
class Sizes(Capacity):
    faces: int
    pairs: int


def test_capacities_are_kept_while_they_fit() -> None:
    needed = Sizes(4000, 9000)
    kept = needed.with_spare()
    assert kept.fits(needed)
    assert kept.fits(replace(needed, faces=4400)) and kept.fits(replace(needed, faces=3200))
    assert not kept.fits(replace(needed, faces=5100))  # too many
    assert not kept.fits(replace(needed, pairs=5000))  # so few that the rest costs time
    assert not kept.fits(replace(needed, faces=kept.faces))  # one must be to spare
    none = Sizes(0, 0).with_spare()
    assert none.fits(Sizes(0, 0))


def test_without_a_capture_shapes_follow_the_values() -> None:
    graph: GrowingGraph[PairCapacity, tuple[PairCapacity | None, Tensor]] = GrowingGraph(
        lambda capacity, values: (capacity, values), captures=False
    )
    for count in (3, 5):
        capacity, values = graph(torch.zeros(count))
        assert capacity is None and len(values) == count
    assert not graph.captured


@pytest.mark.gpu
def test_buffers_grow_and_results_stay() -> None:
    """Positive values moved to the front of a buffer, which tells how many there are."""

    def compact(capacity: PairCapacity | None, values: Tensor) -> tuple[Tensor, Tensor]:
        positive = values > 0
        front = values.sort(descending=True).values
        return front[: capacity.pairs if capacity else int(positive.sum())], positive.sum()

    graph: GrowingGraph[PairCapacity, tuple[Tensor, Tensor]] = GrowingGraph(compact, captures=True)
    graph.fit(PairCapacity(100))
    few = torch.arange(4000, device="cuda") < 100
    for call in range(PLAIN_CALLS + 2):
        assert graph.captured == (call > PLAIN_CALLS)
        front, count = graph(few.float())
        assert (len(front), int(count), int(front.sum())) == (376, 100, 100)
    many = torch.arange(4000, device="cuda") < 2000
    assert int(graph(many.float())[1]) == 2000  # told although there is no room
    assert graph.fit(PairCapacity(2000)) == PairCapacity(2656) and not graph.captured
    assert int(graph(many.float())[0].sum()) == 2000 and graph.captured
    assert graph.fit(PairCapacity(1900)) == PairCapacity(2656) and graph.captured
    graph.restart()
    assert graph.capacity is None and not graph.captured
