"""Time and memory of a training step of stage II: ``python -m benchmarks.step``, about a minute for
each size on a GPU; with ``--variants`` also with one setting of the first profile changed at once.

The pictures are those of `tests.scenes.head_pictures` at full size, read, decoded and uploaded as
in training; the Gaussians lie on a head-sized ellipsoid. LPIPS has random weights, which cost what
the published ones cost. Steps are timed by the host over windows of ten that end in a
synchronisation, the parts alone as CUDA graphs of their own; medians after a warm-up. On the CPU it
is the demo's profile at its size, without LPIPS, and the step alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import longest_kernels, synchronise
from benchmarks.profiles import PROFILES, read_profile
from eavatar.avatar.model import CameraBatch
from eavatar.data.frames import FrameSet
from eavatar.settings import SplatSettings, merge, validate
from eavatar.splat.train import BOX_MULTIPLE, SplatTraining, start_avatar
from eavatar.training.graphs import Captured
from eavatar.training.loop import seed_everything
from eavatar.training.perceptual import Perceptual
from tests.scenes.head_pictures import write_pictures
from tests.scenes.splat_scene import write_stage_one

VARIANTS: dict[str, dict[str, Any]] = {
    "one view": {"views_per_step": 1},
    "whole images": {"boxes": False},
    "float32": {"run": {"mixed_precision": False}},
    "not compiled": {"run": {"compile": False}},
    "gha upsampler": {"upsampler": "gha", "upsampler_width": 32, "upsampling": 4},
}
WARM_UP, WINDOWS, STEPS = 12, 5, 10  # steps, windows, steps of a window
PROFILED = 1000  # first step that is profiled, far from where the Gaussians are split
SEED = 0


@dataclass(frozen=True)
class Task:
    """A training that can be stepped, and what its images and Gaussians are."""

    training: SplatTraining
    settings: SplatSettings
    device: torch.device


@dataclass(frozen=True)
class Profile:
    """Stage II's settings, and stage I's channels of features and colours."""

    splat: SplatSettings
    channels: tuple[int, int]


def make_profile(name: str, size: int, changes: dict[str, Any]) -> Profile:
    """A profile at a size of the pictures, some settings changed."""
    content = read_profile(name)
    splat = merge(content["splat"], {"image_size": size, "surface_points": 10**6}, changes)
    channels = content["sdf"]["feature_size"], content["sdf"]["colour_size"]
    return Profile(validate(SplatSettings, splat, name), channels)


def random_perceptual(device: torch.device) -> Perceptual:
    import lpips

    with warnings.catch_warnings():
        # lpips still passes torchvision's old `pretrained`, which warns.
        warnings.simplefilter("ignore", UserWarning)
        return Perceptual(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)).to(device)


@contextmanager
def make_task(root: Path, profile: Profile, count: int, device: torch.device) -> Iterator:
    """A training of so many Gaussians on the pictures below a folder."""
    seed_everything(SEED)
    settings = profile.splat
    vertices = count - settings.mouth_points
    write_stage_one(root / "sdf", vertices, settings.width, *profile.channels)
    folders = root / "capture", root / "face"
    frames = FrameSet.read(*folders, "train", settings.image_size, 4).to(device)
    if settings.boxes:
        frames = frames.boxed(BOX_MULTIPLE * settings.upsampling)
    avatar = start_avatar(settings, root / "sdf", frames).to(device)
    perceptual = random_perceptual(device) if device.type == "cuda" else None
    with SplatTraining(settings, SEED, frames, avatar, perceptual) as training:
        yield Task(training, settings, device)


def time_steps(task: Task) -> tuple[float, float]:
    """Median milliseconds of a step, and seconds until the first window."""
    training, begin, number = task.training, time.perf_counter(), 0
    for number in range(WARM_UP):
        training.step(number)
    synchronise()
    start_up, windows = time.perf_counter() - begin, []
    for _ in range(WINDOWS):
        begin = time.perf_counter()
        for _ in range(STEPS):
            number += 1
            training.step(number)
        synchronise()
        windows.append(1e3 * (time.perf_counter() - begin) / STEPS)
    return statistics.median(windows), start_up


def time_graph(function: Callable[[Tensor], object], device: torch.device) -> float:
    """Median milliseconds of a function replayed as a CUDA graph."""
    captured = Captured(function, torch.zeros((), device=device))
    times = []
    for _ in range(20):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        captured(torch.zeros((), device=device))
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    captured.release()
    return statistics.median(times)


def profiled(task: Task, number: int) -> list[str]:
    """The longest kernels of a step."""

    def steps() -> None:
        for step in range(PROFILED, PROFILED + STEPS):
            task.training.step(step)

    return longest_kernels(steps, STEPS, number)


def parts(task: Task) -> dict[str, Callable[[Tensor], object]]:
    """What a step is made of, each by itself, for the first timestep."""
    training, settings = task.training, task.settings
    frames, avatar = training.frames, training.avatar
    batch = training.loader.batch(0)
    cameras, pixels = batch.cameras[0], batch.pixels[0].clone()
    pose = frames.poses[0]
    corner = torch.zeros(2, dtype=torch.int64, device=task.device)
    size = frames.height, frames.width
    views = CameraBatch(frames.intrinsics[cameras], frames.world_to_camera[cameras], *size)

    def generate() -> list[Tensor]:
        generated = avatar.generator(
            avatar.neutral,
            avatar.arrangement,
            settings.control,
            frames.driving[0],
            pose,
            avatar.settings.scale,
        )
        return list(vars(generated.gaussians).values())

    def draw() -> list[Tensor]:
        capacity = training.graph.capacity
        drawn = avatar.draw(frames.driving[0], pose, views, capacity and capacity.pairs)
        return [drawn.features]

    with torch.no_grad():
        coarse = draw()[0].detach().clone().requires_grad_()

    def finish() -> list[Tensor]:
        values = training.image_losses(coarse, pixels, frames.visible[cameras], corner)
        return [torch.stack(list(values.values())).sum()]

    def optimise(_: Tensor) -> None:
        for group in training.optimiser.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:  # in the warm-up only
                    parameter.grad = torch.zeros_like(parameter)
        training.optimiser.step()

    def backward(function: Callable[[], list[Tensor]]) -> Callable[[Tensor], object]:
        def run(_: Tensor) -> None:
            training.optimiser.zero_grad()
            coarse.grad = None
            sum(value.sum() for value in function()).backward()

        return run

    def forward(function: Callable[[], list[Tensor]]) -> Callable[[Tensor], object]:
        def run(_: Tensor) -> object:
            with torch.no_grad():
                return function()

        return run

    return {
        "generate": forward(generate),
        "generate + backward": backward(generate),
        "generate, splat": forward(draw),
        "generate, splat + backward": backward(draw),
        "upsample, losses": forward(finish),
        "upsample, losses + backward": backward(finish),
        "optimiser": optimise,
    }


def describe_memory() -> str:
    """Of tensors, and of what the allocator had or has from the device for them."""
    used, most = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
    now = torch.cuda.memory_reserved() / 1e9
    return f"memory: tensors {used:.1f} GB, reserved {most:.1f} GB at most and {now:.1f} GB now"


def report(
    root: Path, name: str, profile: Profile, count: int, device: torch.device, kernels: int
) -> None:
    """Print the figures of one profile at one number of Gaussians, and its longest kernels."""
    torch.compiler.reset()  # it compiles a function for so many sizes only
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with make_task(root, profile, count, device) as task:
        step, start_up = time_steps(task)
        views = min(task.settings.views_per_step, len(task.training.frames.serials))
        frames, avatar = task.training.frames, task.training.avatar
        share = avatar.arrangement.near / len(avatar.neutral)
        print(
            f"{name:13} N {len(avatar.neutral):6}  {views} × {frames.height}×{frames.width}: "
            f"{step:7.2f} ms a step, {step / views:6.2f} ms an image; start {start_up:.0f} s; "
            f"expression in {share:.0%}",
            flush=True,
        )
        if device.type == "cuda":
            print(f"         {describe_memory()}", flush=True)
            for line in profiled(task, kernels) if kernels else []:
                print(f"         {line}", flush=True)
            for part, function in parts(task).items():
                print(f"         {part:28} {time_graph(function, device):7.2f} ms", flush=True)


def main() -> int:
    """Print the times of a step and its parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    cuda = torch.cuda.is_available()
    counts, profiles = ([50_000, 100_000, 200_000], ["fast", "paper"])
    if not cuda:
        counts, profiles = [10_000, 20_000], ["demo"]
    parser.add_argument("--counts", type=int, nargs="+", default=counts, help="Gaussians")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=profiles)
    parser.add_argument("--size", type=int, default=2048 if cuda else 256, help="side, pixels")
    parser.add_argument("--variants", action="store_true", help="change one setting at a time")
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    runs: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in options.profiles]
    if options.variants:
        runs += [(options.profiles[0], name, changes) for name, changes in VARIANTS.items()]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = write_pictures(Path(folder), options.size, 2, 16)
        for profile_name, name, changes in runs:
            profile = make_profile(profile_name, options.size, changes)
            for count in options.counts:
                try:
                    report(root, name, profile, count, device, options.kernels)
                except RuntimeError as error:
                    failed += 1
                    print(f"{name} N {count}: {' '.join(str(error).split())[:400]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
