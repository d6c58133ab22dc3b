"""Time of a training step and of a frame of the baselines, beside ours in the same run:
``python -m benchmarks.baselines [--device cpu] [--profiles fast paper]``.

The pictures are those of the toy head of the tests, whose mask a hull is carved from; the frame is
drawn as for Table 5: from numbers on the device to the finished image there. HAvatar's step is of
both phases, with LPIPS of random weights, which cost what the published ones cost. Medians after a
warm-up. On the CPU it is the demo's profile at its sizes, without LPIPS.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import trimesh

from benchmarks.convergence import as_saved
from benchmarks.device import synchronise
from benchmarks.profiles import PROFILES, read_profile
from benchmarks.step import Profile, make_task, random_perceptual
from eavatar.baselines.conditions import DeformingMesh
from eavatar.baselines.havatar_training import prepare_havatar
from eavatar.baselines.nerface import prepare_nerface
from eavatar.baselines.training import FieldTraining
from eavatar.device import choose_device, describe_device
from eavatar.io import read_tracking
from eavatar.settings import HavatarSettings, NerfaceSettings, SplatSettings, merge, validate
from eavatar.tables.avatar_method import AvatarMethod
from eavatar.training.loop import seed_everything
from eavatar.view.speed import frame_of_avatar, frame_of_method, time_frames
from tests.scenes.splat_scene import AXES, EXPRESSIONS, deform, write_subject

SEED, VIEWS, TIMESTEPS = 0, 4, 2
GAUSSIANS = {"cuda": 100_000, "cpu": 10_000}  # of our avatar
WARM_UP, WINDOWS, STEPS = 12, 5, {"cuda": 10, "cpu": 1}  # steps, windows, steps of a window


def toy_mesh() -> DeformingMesh:
    """The toy head with about as many vertices as a morphable model."""
    made = trimesh.creation.icosphere(5)
    neutral = AXES * torch.tensor(made.vertices, dtype=torch.float32)
    moves = [deform(neutral, row) - neutral for row in torch.eye(EXPRESSIONS)]
    faces = np.array(made.faces, dtype=np.int64)
    return DeformingMesh(neutral.numpy(), torch.stack(moves, dim=-1).numpy(), faces)


def step_ms(step: Callable[[int], object], first: int, kind: str) -> float:
    """Median milliseconds of a step, from a step on."""
    number, times = first, []
    for number in range(first, first + WARM_UP):
        step(number)
    for _ in range(WINDOWS):
        synchronise()
        begin = time.perf_counter()
        for _ in range(STEPS[kind]):
            number += 1
            step(number)
        synchronise()
        times.append(1e3 * (time.perf_counter() - begin) / STEPS[kind])
    return statistics.median(times)


@contextmanager
def make_baseline(name: str, profile: str, root: Path, device: torch.device) -> Iterator:
    """The training of a baseline on the toy head."""
    seed_everything(SEED)
    block = read_profile(profile)[name]
    places = root / "capture", root / "face", device
    task: FieldTraining
    if name == "nerface":
        task = prepare_nerface(validate(NerfaceSettings, block, profile), SEED, *places)
    else:
        settings = validate(HavatarSettings, merge(block, {"lpips_required": False}), profile)
        task = prepare_havatar(settings, SEED, toy_mesh(), *places)
        if task.perceptual is None and device.type == "cuda":
            task.perceptual = random_perceptual(device)
    with task:
        yield task


def report(label: str, steps: str, frame_ms: float, size: int) -> None:
    print(f"{label:16} {steps:44} frame {frame_ms:9.1f} ms, {1e3 / frame_ms:7.2f} FPS, {size}²",
          flush=True)  # fmt: skip


def measure_baseline(name: str, profile: str, root: Path, device: torch.device) -> None:
    """Print a row on a baseline."""
    with make_baseline(name, profile, root, device) as task:
        settings, kind = task.settings, device.type
        phases = {"step": 0}
        if name == "havatar":
            phases = {"first phase": 0, "second": settings.field_steps}
        times = {phase: step_ms(task.step, first, kind) for phase, first in phases.items()}
        steps = ", ".join(f"{phase} {value:.1f} ms" for phase, value in times.items())
        with as_saved(task) as method:
            frame = frame_of_method(method)
            milliseconds = time_frames(frame, *drive(root))
        images = f"{steps}, {settings.images_per_step} images"
        report(f"{name} {profile}", images, statistics.median(milliseconds), frame.image_size)


def measure_ours(profile: str, root: Path, device: torch.device, size: int) -> None:
    """Print a row on our avatar, at the size of a baseline's images."""
    content, kind = read_profile(profile), device.type
    changes = {"image_size": size, "surface_points": 10**6, "lpips_required": False}
    splat = validate(SplatSettings, merge(content["splat"], changes), profile)
    channels = content["sdf"]["feature_size"], content["sdf"]["colour_size"]
    with make_task(root, Profile(splat, channels), GAUSSIANS[kind], device) as task:
        step = step_ms(task.training.step, 0, kind)
        with as_saved(task.training) as method:
            assert isinstance(method, AvatarMethod)
            milliseconds = time_frames(frame_of_avatar(method.avatar), *drive(root))
        steps = f"step {step:.1f} ms, {min(splat.views_per_step, VIEWS)} images"
        report(f"avatar {profile}", steps, statistics.median(milliseconds), size)


def drive(root: Path) -> tuple:
    """What moves the head, and the file of its cameras."""
    track = read_tracking(root / "face" / "tracking" / "FREE.npz")
    return track, root / "capture" / "cameras.json"


def main() -> None:
    """Measure the profiles of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], help="a GPU if there is one")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES)
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    device = choose_device()
    if options.device == "cuda" and device.type != "cuda":
        parser.error("torch finds no CUDA device")
    print(f"{describe_device(device)}, torch {torch.__version__}")
    for profile in options.profiles or (["fast", "paper"] if device.type == "cuda" else ["demo"]):
        size = read_profile(profile)["havatar"]["image_size"]
        with tempfile.TemporaryDirectory() as folder:
            root = write_subject(Path(folder), TIMESTEPS, VIEWS, size)
            for name in ("nerface", "havatar"):
                measure_baseline(name, profile, root, device)
            measure_ours(profile, root, device, size)


if __name__ == "__main__":
    main()
