"""Quality over training time: ``python -m benchmarks.convergence train …`` once for each profile
or method, then ``… plot fast.csv paper.csv curves.svg``.

Trains stage II, or a baseline, for so many minutes with some cameras held out. The clock runs from
the first step on, compilation and captures included, and stands still while the held-out pictures
are measured:
``free`` is every camera at some timesteps of the test sequences, ``views`` the held-out cameras at
some training timesteps. PSNR and SSIM (11×11 Gaussian window) are means over pictures on white,
without the padding of the crop. Without LPIPS unless its weights are there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.device import synchronise
from benchmarks.profiles import read_profile
from eavatar.baselines.conditions import DeformingMesh
from eavatar.baselines.havatar_training import prepare_havatar
from eavatar.baselines.nerface import prepare_nerface
from eavatar.baselines.training import FieldTraining
from eavatar.data.camera_split import split_cameras
from eavatar.data.frames import FrameSet
from eavatar.data.methods import Method, ViewRequest
from eavatar.device import choose_device
from eavatar.face.morphable import read_morphable_model
from eavatar.io import read_cameras, read_mesh
from eavatar.settings import (
    HavatarSettings,
    NerfaceSettings,
    SplatSettings,
    merge,
    read_yaml,
    validate,
)
from eavatar.splat.train import BOX_MULTIPLE, SplatTraining, start_avatar
from eavatar.tables.avatar_method import AvatarMethod
from eavatar.training.loop import seed_everything
from eavatar.training.perceptual import load_perceptual

SEED = 0
TIMESTEPS = 8  # of each set that are measured, if no other number is asked for
VIEWS = 4  # drawn at once when measuring
RATE_STEPS = 150  # steps that tell how many fit in the time
GROWTH = 1.65  # mean time of a step / that of the first ones, as the Gaussians become more
COLUMNS = ["profile", "seconds", "step", "set", "psnr_db", "ssim"]
COLOURS = ("#c2410c", "#1d4ed8", "#4d7c0f", "#7e22ce")  # of the curves, in the tables' order
BLOCKS = {"avatar": SplatSettings, "nerface": NerfaceSettings, "havatar": HavatarSettings}

Training = SplatTraining | FieldTraining
Course = SplatSettings | NerfaceSettings | HavatarSettings


@dataclass(frozen=True)
class HeldOut:
    """Pictures that training does not see: some timesteps of frames, in some cameras."""

    name: str
    frames: FrameSet
    timesteps: list[int]
    cameras: list[int]

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        for timestep in self.timesteps:
            for first in range(0, len(self.cameras), VIEWS):
                yield timestep, self.cameras[first : first + VIEWS]


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM maps (C, H, W) of images (C, H, W, 3): Gaussian window with σ = 1.5."""
    places = torch.arange(-5.0, 6.0, device=first.device)
    bell = torch.exp(-places.square() / 4.5)
    kernel = (bell[:, None] * bell / bell.sum() ** 2).expand(3, 1, 11, 11)

    def blur(images: Tensor) -> Tensor:
        return conv2d(images, kernel, padding=5, groups=3)

    x, y = (images.permute(0, 3, 1, 2) for images in (first, second))
    mean_x, mean_y = blur(x), blur(y)
    variance = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variance + 9e-4)).mean(dim=1)


def measure(method: Method, held_out: HeldOut) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM."""
    frames, figures = held_out.frames, []
    for timestep, cameras in held_out.batches():
        request = ViewRequest(
            frames.sequences[timestep],
            frames.timesteps[timestep],
            frames.expression[timestep],
            frames.rotation[timestep],
            frames.translation[timestep],
            tuple(frames.serials[camera] for camera in cameras),
            frames.intrinsics[cameras],
            frames.world_to_camera[cameras],
        )
        picture = method.render(request)
        views = frames.views(timestep, cameras)
        error = (picture - views.images).square().mean(dim=-1) * views.visible
        area = views.visible.sum(dim=(1, 2))
        similarity = structural_similarity(picture, views.images) * views.visible
        psnr = -10 * torch.log10(error.sum(dim=(1, 2)) / area)
        figures.append(torch.stack([psnr, similarity.sum(dim=(1, 2)) / area], dim=1))
    return tuple(torch.cat(figures).mean(dim=0).tolist())


def make_training(
    options: argparse.Namespace, settings: Course, frames: FrameSet | None, device: torch.device
) -> Training:
    """The task before its first step; a baseline reads its frames itself."""
    seed_everything(SEED)
    places = options.capture, options.face, device, options.held_out
    if isinstance(settings, NerfaceSettings):
        return prepare_nerface(settings, SEED, *places)
    if isinstance(settings, HavatarSettings):
        model = read_morphable_model(options.morphable_model)
        neutral = read_mesh(options.face / "neutral.ply").vertices
        mesh = DeformingMesh(neutral, model.expression_basis, model.faces)
        return prepare_havatar(settings, SEED, mesh, *places)
    avatar = start_avatar(settings, options.sdf, frames).to(device)
    perceptual = load_perceptual("vgg", device, required=False)
    return SplatTraining(settings, SEED, frames, avatar, perceptual)


@contextmanager
def as_saved(training: Training) -> Iterator[Method]:
    """Within, what draws with the means of the parameters, as they would be saved now."""
    if isinstance(training, FieldTraining):
        with training.averaged():
            yield cast(Method, training.model)
    else:
        with training.optimiser.averaged():
            yield AvatarMethod(training.avatar)


def time_steps(training: Training, first: int) -> tuple[float, float]:
    """Seconds until the first steps from a step on are done, and of a step after them."""
    begins = []
    for step in range(RATE_STEPS):
        if step % (RATE_STEPS // 3) == 0:
            synchronise()
            begins.append(time.perf_counter())
        training.step(first + step)
    synchronise()
    return begins[1] - begins[0], (time.perf_counter() - begins[1]) / (RATE_STEPS * 2 // 3)


def fit_steps(training: Training, settings: Course, seconds: float) -> tuple[int, float]:
    """How many steps fit in the time, and the part of it that finding out has cost.

    What is compiled for that is kept, so it counts.
    """
    if not isinstance(settings, HavatarSettings):
        start, each = time_steps(training, 0)
        growth = GROWTH if isinstance(settings, SplatSettings) else 1.0
        return int((seconds - start) / (growth * each)), start
    first, second = (time_steps(training, step) for step in (0, settings.field_steps))
    share = settings.field_steps / settings.steps
    start, each = first[0] + second[0], share * first[1] + (1 - share) * second[1]
    return int((seconds - start) / each), start


def read_settings(options: argparse.Namespace) -> Course:
    """The method's settings of the profile, and what is laid over them."""
    block = "splat" if options.method == "avatar" else options.method
    changes = {"image_size": options.size}
    if options.method != "nerface":
        changes["lpips_required"] = False
    changes = merge(changes, read_yaml(options.settings) if options.settings else {})
    content = merge(read_profile(options.profile)[block], changes)
    return validate(BLOCKS[options.method], content, options.profile)


def read_frames(
    options: argparse.Namespace, settings: Course, device: torch.device
) -> tuple[FrameSet, list[HeldOut]]:
    """What an avatar is trained on, and what is measured."""
    places = (options.capture, options.face)
    whole, test = (
        FrameSet.read(*places, part, options.size, settings.run.image_memory_gb).to(device)
        for part in ("train", "test")
    )
    _, chosen = split_cameras(read_cameras(options.capture / "cameras.json"), options.held_out)
    hidden = [index for index, serial in enumerate(whole.serials) if serial in chosen]
    usable = whole.usable.copy()
    usable[:, hidden] = False
    frames = replace(whole, usable=usable)
    if isinstance(settings, SplatSettings) and settings.boxes:
        frames = frames.boxed(BOX_MULTIPLE * settings.upsampling)
    count = options.timesteps
    return frames, [
        HeldOut("free", test, spread(len(test), count), list(range(len(test.serials)))),
        HeldOut("views", whole, spread(len(whole), count), hidden),
    ]


def train(options: argparse.Namespace) -> None:
    """Train a method and write two rows per measurement."""
    device = choose_device()
    settings, seconds, elapsed = read_settings(options), 60 * options.minutes, 0.0
    name = options.name or (options.profile if options.method == "avatar" else options.method)
    frames, held_out = read_frames(options, settings, device)
    if not isinstance(settings, SplatSettings) or settings.learning_rates.final < 1:
        # Such rates need the number of steps.
        with make_training(options, settings, frames, device) as training:
            steps, elapsed = fit_steps(training, settings, seconds)
        settings = shorten(settings, steps)
    rows: list[list[object]] = []
    with make_training(options, settings, frames, device) as training:
        step = 0
        while True:
            for part in held_out:
                with as_saved(training) as method:
                    psnr, ssim = measure(method, part)
                rows.append([name, elapsed, step, part.name, psnr, ssim])
                print(f"{name} {elapsed:6.0f} s, step {step:6}: {part.name:5} "
                      f"{psnr:.2f} dB, SSIM {ssim:.4f}", flush=True)  # fmt: skip
            pd.DataFrame(rows, columns=COLUMNS).to_csv(options.output, index=False)
            if elapsed >= seconds or step >= settings.steps:
                break
            until = min(seconds, elapsed + max(15, elapsed / 2))
            step, taken = train_for(until - elapsed, training, step, settings.steps)
            elapsed += taken


def train_for(seconds: float, training: Training, step: int, steps: int) -> tuple[int, float]:
    """Train on for so long or to the last step; the step after and the seconds it took."""
    synchronise()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds and step < steps:
        training.step(step)
        step += 1
        if step % 10 == 0:
            synchronise()
    synchronise()
    return step, time.perf_counter() - begin


def spread(count: int, wanted: int = TIMESTEPS) -> list[int]:
    """Indices of at most the wanted number of so many, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, wanted).astype(int).tolist()))


def shorten(settings: Course, steps: int) -> Course:
    """The same course of training in another number of steps."""
    if not isinstance(settings, SplatSettings):
        names = (
            ("decay_steps", "field_steps") if hasattr(settings, "field_steps") else ("decay_steps",)
        )
        times = {name: max(1, getattr(settings, name) * steps // settings.steps) for name in names}
        return settings.model_copy(update={"steps": steps, **times})
    split = settings.split
    times = {name: getattr(split, name) for name in ("start", "every", "stop")}
    times = {name: max(1, time * steps // settings.steps) for name, time in times.items()}
    return settings.model_copy(update={"steps": steps, "split": split.model_copy(update=times)})


def plot(options: argparse.Namespace) -> None:
    """PSNR and SSIM of both held-out sets over time as one SVG of four panels."""
    table = pd.concat([pd.read_csv(path) for path in options.tables])
    parts = [
        panel(table[table["set"] == held_out], column, held_out, 60 + 330 * x, 30 + 220 * y)
        for y, held_out in enumerate(("free", "views"))
        for x, column in enumerate(("psnr_db", "ssim"))
    ]
    options.output.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 470" font-family="sans-serif" '
        f'font-size="11">{"".join(parts)}</svg>\n'
    )


def panel(rows: pd.DataFrame, column: str, held_out: str, left: int, top: int) -> str:
    """One curve for each name in the column ``profile``, 270 × 160 pixels."""
    last = rows["seconds"].max()
    low, high = rows[column].quantile(0.25), rows[column].max()
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    title = {"free": "FREE", "views": "held-out cameras"}[held_out]
    unit = {"psnr_db": "PSNR, dB", "ssim": "SSIM"}[column]
    parts = [
        f'<rect x="{left}" y="{top}" width="270" height="160" fill="none" stroke="#999"/>',
        f'<text x="{left}" y="{top - 8}">{title}: {unit}</text>',
    ]
    for quarter in range(5):
        x, y = left + 67.5 * quarter, top + 160 - 40 * quarter
        value, minutes = low + (high - low) * quarter / 4, last / 60 * quarter / 4
        parts.append(
            f'<path d="M{left} {y}h270M{x} {top}v160" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>'
            f'<text x="{x}" y="{top + 175}" text-anchor="middle">{minutes:.3g} min</text>'
        )
    for index, (profile, own) in enumerate(rows.groupby("profile", sort=False)):
        x = left + 270 * own["seconds"] / last
        y = top + 160 * (1 - ((own[column] - low) / (high - low)).clip(0, 1))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left + 264}" y="{top + 120 + 14 * index}" text-anchor="end" '
            f'fill="{colour}">{profile}</text>'
        )
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    training = verbs.add_parser("train", help="train one profile")
    training.set_defaults(function=train)
    for name in ("capture", "face", "output"):
        training.add_argument(f"--{name}", type=Path, required=True)
    training.add_argument("--method", choices=BLOCKS, default="avatar")
    training.add_argument("--name", help="of the curve; the profile or the method if not given")
    training.add_argument("--sdf", type=Path, help="stage I of an avatar")
    training.add_argument("--morphable-model", type=Path, help="of havatar's mesh")
    training.add_argument("--profile", choices=["fast", "paper", "demo"], required=True)
    training.add_argument("--settings", type=Path, help="YAML laid over the profile's block")
    training.add_argument("--timesteps", type=int, default=TIMESTEPS, help="measured of each set")
    training.add_argument("--size", type=int, required=True, help="side of the images, pixels")
    training.add_argument("--minutes", type=float, default=8)
    training.add_argument(
        "--held-out", nargs="+", required=True, help="serials of the cameras, or alternate"
    )
    plotting = verbs.add_parser("plot", help="draw the curves")
    plotting.set_defaults(function=plot)
    plotting.add_argument("tables", type=Path, nargs="+")
    plotting.add_argument("output", type=Path)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
