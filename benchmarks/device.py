"""Waiting for the GPU and asking where its time goes, for the benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def longest_kernels(steps: Callable[[], object], count: int, number: int) -> list[str]:
    """A line on the GPU's busy time per step, and one on each of the kernels that take longest.

    Args:
        steps: makes so many steps (count). number: of kernels.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        steps()
        synchronise()
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels) / 1e3 / count
    launches = sum(event.count for event in kernels) / count
    return [f"{total:7.3f} ms {launches:7.1f} ×  all of the GPU's work in a step"] + [
        f"{event.self_device_time_total / 1e3 / count:7.3f} ms {event.count / count:7.1f} ×  "
        f"{event.key[:90]}"
        for event in kernels[:number]
    ]
