"""CUDA graphs: a function of tensors recorded once and replayed without the host's part.

A network of many small layers keeps the GPU waiting for Python; replayed as one graph it does not.
This is the recipe of PyTorch's notes on CUDA semantics ("whole-network capture"). `Captured` is one
function with fixed shapes; `GrowingGraph` has scratch buffers whose sizes follow the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache, partial
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

SPARE = 1.2  # capacity / what is needed
MIN_SPARE = 256  # more capacity than that, whatever is needed
MAX_SLACK = 1.6  # capacity / what is needed, beyond which the rest costs more than a new capture
PLAIN_CALLS = 3  # before a capture: libraries choose kernels, an optimiser makes its state

T = TypeVar("T")


def run_aside(function: Callable[..., T], *inputs: Tensor) -> T:
    """Call a function as it must be called before its capture on CUDA: on another stream.

    Libraries choose their kernels then, and an optimiser makes its state in its first step.
    """
    stream = _side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return output


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The same every time, as memory that is freed on one stream is not used again on another."""
    return torch.cuda.Stream(device)


class Captured(Generic[T]):
    """A function of tensors that is captured in one CUDA graph, and replayed when called.

    On the CPU a call is just a call of the function.

    On CUDA everything in the function must have the same shapes in every call and need no
    host-device synchronisation. What it reads beside its arguments (parameters, buffers) must stay
    where it is in memory and is read anew in every call; what it decides in Python is decided once.
    What it returns are static tensors: **the next call overwrites them**.

    The function may train: forward, backward and a capturable optimiser. Then

    - it must begin with ``optimizer.zero_grad(set_to_none=True)``, so that gradients are None when
      the capture begins and a replay writes instead of adds;
    - the warm-up takes **real optimiser steps** on the examples, and at least one is needed, as the
      optimiser makes its state in its first. The capture itself takes none: it records only.

    Other threads may go on using the device during the capture.

    Args:
        function: of tensors.
        examples: one or more tensors of one device, which decide shapes, types and device; they are
            copied.
        warm_up: runs of the function on the examples before the capture; none on the CPU. Zero if
            `run_aside` has been used instead.
    """

    def __init__(self, function: Callable[..., T], *examples: Tensor, warm_up: int = 3):
        self._function = function
        self._shapes = [example.shape for example in examples]
        self._graph: torch.cuda.CUDAGraph | None = None
        if examples[0].is_cuda:
            self._inputs = [example.detach().clone() for example in examples]
            for _ in range(warm_up):
                run_aside(function, *self._inputs)
            self._graph = torch.cuda.CUDAGraph()
            # The default mode would forbid other threads (loaders of frames) to allocate meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> T:
        """What the function returned at its capture, holding the values for these inputs.

        Inputs are copied without waiting, from any device: one in pinned memory must not be changed
        before the device is done with it.

        Raises:
            ValueError: another number of inputs, or another shape, than the examples had.
        """
        shapes = [given.shape for given in inputs]
        if shapes != self._shapes:
            raise ValueError(
                f"inputs of shapes {[*map(tuple, shapes)]} given to a function captured for "
                f"{[*map(tuple, self._shapes)]}"
            )
        if self._graph is None:
            return self._function(*inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output

    def release(self) -> None:
        """Drop graph and buffers, so that a new capture can take their memory.

        Memory of outputs and gradients that the caller still holds stays taken. Later calls run the
        function without a graph.
        """
        if self._graph is not None:
            torch.cuda.synchronize()  # the graph may still be running
            self._graph.reset()
            self._graph = None
            del self._inputs, self._output


@dataclass(frozen=True)
class Capacity:
    """Sizes of scratch buffers, or the sizes that a call needs; subclasses name them."""

    def with_spare(self) -> Self:
        """Capacities for calls that need somewhat more than this."""
        return type(self)(*(int(SPARE * size) + MIN_SPARE for size in astuple(self)))

    def fits(self, needed: Self) -> bool:
        """Whether these hold what is needed, one element to spare, and are not far too large."""
        pairs = zip(astuple(self), astuple(needed), strict=True)
        return all(need < size <= MAX_SLACK * need + 2 * MIN_SPARE for size, need in pairs)


@dataclass(frozen=True)
class PairCapacity(Capacity):
    """Of the rasteriser.

    Attributes:
        pairs: of a Gaussian and a tile.
    """

    pairs: int


C = TypeVar("C", bound=Capacity)


class GrowingGraph(Generic[C, T]):
    """A function as a CUDA graph with scratch buffers, captured anew when these no longer fit.

    In a graph no shape may depend on a value, so the function works in buffers of set capacities
    and returns, or keeps in a tensor, how much it needed. Whoever calls it learns that at a
    host-device synchronisation of its own choice and passes it to `fit`. The first calls are not
    captured, but run aside as `Captured` wants it.

    On the CPU, or where `captures` is false, a call is a call of the function with None for its
    capacities: shapes follow the values.

    Args:
        function: of capacities, or None, and tensors; see `Captured`.
        captures: whether to capture.

    Attributes:
        capacity: of the present buffers; None where shapes follow the values.
    """

    def __init__(self, function: Callable[..., T], captures: bool):
        self.function, self.captures = function, captures
        self.capacity: C | None = None
        self.plain_calls = PLAIN_CALLS
        self._captured: Captured[T] | None = None

    @property
    def captured(self) -> bool:
        """Whether calls are replayed by now."""
        return self._captured is not None

    def fit(self, needed: C) -> C:
        """Have buffers for what the next calls need; returns their capacities."""
        if self.capacity is None or not self.capacity.fits(needed):
            self._release()
            self.capacity = needed.with_spare()
        return self.capacity

    def restart(self) -> None:
        """Forget graph and capacities: tensors that the function reads have been replaced."""
        self._release()
        self.capacity, self.plain_calls = None, PLAIN_CALLS

    def __call__(self, *inputs: Tensor) -> T:
        """What the function returns; by a graph in static tensors, see `Captured`."""
        function: Callable[..., T] = partial(self.function, self.capacity)
        if not self.captures:
            return function(*inputs)
        if self._captured is None and self.plain_calls > 0:
            self.plain_calls -= 1
            return run_aside(function, *inputs)
        if self._captured is None:
            torch.cuda.empty_cache()  # the graph has its own memory
            self._captured = Captured(function, *inputs, warm_up=0)
        return self._captured(*inputs)

    def _release(self) -> None:
        if self._captured is not None:
            self._captured.release()
        self._captured = None
