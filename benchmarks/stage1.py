"""Time of stage I's training steps: ``python -m benchmarks.stage1 --capture results/demo/capture
--face results/demo/face --prior results/demo/prior/aligned.ply [--config config/demo.yaml]``.

Steps are timed in windows, with the device synchronised at both ends, so that what one step leaves
to the device runs beside the next as in training. The median window is what counts; a window holds
one regular look at the whole grid. Nothing is written.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.device import longest_kernels, synchronise
from eavatar.device import choose_device
from eavatar.sdf.train import REFRESH_EVERY, SdfTraining, prepare
from eavatar.settings import read_config
from eavatar.training.loop import seed_everything

ROOT = Path(__file__).parents[1]
SEED = 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time of stage I's training steps.")
    parser.add_argument("--capture", type=Path, required=True)
    parser.add_argument("--face", type=Path, required=True)
    parser.add_argument("--prior", type=Path, required=True, help="aligned.ply")
    parser.add_argument("--config", type=Path, nargs="*", default=[], help="over config.yaml")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    return parser.parse_args()


def time_steps(task: SdfTraining, steps: int) -> list[float]:
    """Milliseconds per step of each window, after a window of warm-up."""
    times = []
    windows = range(0, steps + REFRESH_EVERY, REFRESH_EVERY)
    for first in tqdm(windows, desc="stage I", unit="window"):
        synchronise()
        start = time.perf_counter()
        for step in range(first, first + REFRESH_EVERY):
            task.step(step)
        synchronise()
        times.append(1e3 * (time.perf_counter() - start) / REFRESH_EVERY)
    return times[1:]


def profile(task: SdfTraining, number: int) -> list[str]:
    """The longest kernels of a step."""

    def steps() -> None:
        for step in range(REFRESH_EVERY):
            task.step(step)

    return longest_kernels(steps, REFRESH_EVERY, number)


def peak_memory(device: torch.device) -> float:
    """2^30 bytes: of the device, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    arguments = parse()
    settings = read_config(ROOT / "config" / "config.yaml", *arguments.config).sdf
    seed_everything(SEED)
    device = choose_device()
    places = (arguments.capture, arguments.face, arguments.prior)
    task = prepare(settings, SEED, *places, device)
    with task:
        times = time_steps(task, arguments.steps)
        for line in profile(task, arguments.kernels) if arguments.kernels else []:
            print(line)
    median = statistics.median(times)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}: {settings.timesteps_per_step} timesteps × {settings.views_per_timestep} views at "
        f"{settings.image_size}², grid {settings.grid_resolution}, width {settings.width}"
    )
    print(f"step, median of {len(times)} windows  {median:8.1f} ms")
    print(f"fastest and slowest window     {min(times):8.1f} {max(times):8.1f} ms")
    print(f"peak memory                    {peak_memory(device):8.2f} GiB")
    print(f"10,000 steps                   {median * 10 / 60:8.1f} minutes")


if __name__ == "__main__":
    main()
