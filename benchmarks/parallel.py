"""Time of a step of stage II in one process and split over several: ``python -m
benchmarks.parallel --views 4 8``; and of two processes side by side, each on its own GPU.

The images and Gaussians are those of `benchmarks.step`. Without GPUs all is small, on the CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.step import make_profile, make_task, time_steps
from eavatar.device import PLACE, VISIBLE, choose_device, visible_gpus
from eavatar.training.parallel import is_first, joined
from tests.scenes.head_pictures import write_pictures


def measure(root: Path, views: int, size: int, count: int) -> None:
    """Print what this process, one of a training's or alone, takes for a step."""
    device = choose_device()
    changes = {"views_per_step": views, "densify": {"enabled": False}, "split": {"enabled": False}}
    profile = make_profile("fast" if device.type == "cuda" else "demo", size, changes)
    with joined(device), make_task(root, profile, count, device) as task:
        step, _ = time_steps(task)
    if is_first():
        print(f"{step:.3f}", flush=True)


def start(words: list[str], gpu: str | None, own: dict[str, str]) -> subprocess.Popen[str]:
    """A process of its own, on a GPU if there is one."""
    environment = os.environ | own | ({VISIBLE: gpu} if gpu else {})
    command = [sys.executable, "-m", "benchmarks.parallel", *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


def run(words: list[str], gpus: list[str | None], shared: bool) -> list[float]:
    """Milliseconds of a step, of processes that share a training or run side by side."""
    with tempfile.TemporaryDirectory() as folder:
        own = [
            {PLACE: f"{rank}/{len(gpus)} {folder}/rendezvous"} if shared else {}
            for rank in range(len(gpus))
        ]
        jobs = [start(words, gpu, each) for gpu, each in zip(gpus, own, strict=True)]
        printed = [job.communicate()[0].split() for job in jobs]
    return [float(words[-1]) for words in printed if words]


def main() -> None:
    """Print milliseconds of a step and of an image, and how many times faster two are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8], help="of a step")
    parser.add_argument("--size", type=int, default=2048 if cuda else 128, help="side, pixels")
    parser.add_argument("--count", type=int, default=100_000 if cuda else 3000, help="Gaussians")
    parser.add_argument("--pictures", type=Path, help="of an earlier call; measures this process")
    a = parser.parse_args()
    if a.pictures:
        measure(a.pictures, a.views[0], a.size, a.count)
        return
    found: list[str | None] = [*visible_gpus()][:2] if cuda else [None, None]
    with tempfile.TemporaryDirectory() as name:
        root = write_pictures(Path(name), a.size, 2, 16)
        begun = time.perf_counter()
        for views in a.views:
            words = ["--pictures", str(root), "--size", str(a.size), "--count", str(a.count)]
            words += ["--views", str(views)]
            (alone,) = run(words, found[:1], shared=False)
            print(f"{views} views, one process: {alone:.2f} ms, {alone / views:.2f} an image")
            if views == a.views[0]:
                both = run(words, found, shared=False)
                ratios = ", ".join(f"{each / alone:.3f}" for each in both)
                print(f"  two side by side: {ratios} times that")
            if len(found) > 1:
                (split,) = run(words, found, shared=True)
                print(
                    f"  split over two: {split:.2f} ms, {split / views:.2f} an image, "
                    f"{alone / split:.2f} times as fast",
                    flush=True,
                )
        print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
