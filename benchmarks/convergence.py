"""Quality over training time: ``python -m benchmarks.convergence train …`` once for each profile
or method, then ``… plot fast.csv paper.csv curves.svg``.

Trains stage II, or a baseline, for so many minutes with some cameras held out, also of the stage I
that an avatar starts from. The clock runs from the first step on, compilation and captures
included, and stands still while images are measured. The sets, each some timesteps:

seen          training sequences in some of the cameras trained on
<sequence>    a test sequence, in lower case (``free``), in the cameras trained on
<sequence> views   the same in the held-out cameras
views         training sequences in the held-out cameras

PSNR and SSIM (11×11 Gaussian window) are means over images on white, without the padding of the
crop, of the whole and of its parts (`benchmarks.budget`), with the parts' fractions of the squared
error. Without LPIPS unless its weights are there.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch

from benchmarks.budget import WHOLE, MeasuredSet, measure, write_budget
from benchmarks.device import synchronise
from benchmarks.profiles import read_profile
from eavatar.avatar.files import read_seen_cameras
from eavatar.baselines.conditions import DeformingMesh
from eavatar.baselines.havatar_training import prepare_havatar
from eavatar.baselines.nerface import prepare_nerface
from eavatar.baselines.training import FieldTraining
from eavatar.data.camera_split import split_cameras
from eavatar.data.frames import FrameSet
from eavatar.data.methods import Method
from eavatar.device import choose_device
from eavatar.errors import UserError
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
from eavatar.splat.train import SplatTraining, prepare
from eavatar.tables.avatar_method import AvatarMethod
from eavatar.training.loop import seed_everything

TIMESTEPS = 8  # of each set that are measured, if no other number is asked for
SEEN_CAMERAS = 4  # that are measured of those trained on, at training timesteps
RATE_STEPS = 150  # steps that tell how many fit in the time
GROWTH = 1.1  # mean time of a step / that of the first ones, for the growth of the Gaussians
COLOURS = ("#c2410c", "#1d4ed8", "#4d7c0f", "#7e22ce", "#0f766e")  # in the tables' order
BLOCKS = {"avatar": SplatSettings, "nerface": NerfaceSettings, "havatar": HavatarSettings}

Training = SplatTraining | FieldTraining
Course = SplatSettings | NerfaceSettings | HavatarSettings


def make_training(options: argparse.Namespace, settings: Course, device: torch.device) -> Training:
    """The task before its first step, without what is held out.

    Raises:
        UserError: stage I has seen a camera that is held out.
    """
    seed_everything(options.seed)
    places = options.capture, options.face, device, options.held_out
    if isinstance(settings, NerfaceSettings):
        return prepare_nerface(settings, options.seed, *places)
    if isinstance(settings, HavatarSettings):
        model = read_morphable_model(options.morphable_model)
        neutral = read_mesh(options.face / "neutral.ply").vertices
        mesh = DeformingMesh(neutral, model.expression_basis, model.faces)
        return prepare_havatar(settings, options.seed, mesh, *places)
    capture, face, *others = places
    refuse_seen_cameras(options.sdf, split(options)[1])
    return prepare(settings, options.seed, capture, face, options.sdf, *others)


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
        growth = find_growth(settings) if isinstance(settings, SplatSettings) else 1.0
        return int((seconds - start) / (growth * each)), start
    first, second = (time_steps(training, step) for step in (0, settings.field_steps))
    share = settings.field_steps / settings.steps
    start, each = first[0] + second[0], share * first[1] + (1 - share) * second[1]
    return int((seconds - start) / each), start


def find_growth(settings: SplatSettings) -> float:
    """Mean time of a step / that of the first ones."""
    split, densify = settings.split, settings.densify
    most = max(split.enabled * split.cap, densify.enabled * densify.budget)
    return GROWTH * max(most, 1 / GROWTH)


def read_settings(options: argparse.Namespace) -> Course:
    """The method's settings of the profile, and what is laid over them."""
    block = "splat" if options.method == "avatar" else options.method
    changes = {"image_size": options.size}
    if options.method != "nerface":
        changes["lpips_required"] = False
    changes = merge(changes, read_yaml(options.settings) if options.settings else {})
    content = merge(read_profile(options.profile)[block], changes)
    return validate(BLOCKS[options.method], content, options.profile)


def split(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Serial numbers of the cameras that are trained on, and of those that are held out."""
    return split_cameras(read_cameras(options.capture / "cameras.json"), options.held_out)


def read_sets(
    options: argparse.Namespace, settings: Course, device: torch.device
) -> list[MeasuredSet]:
    """What is measured."""
    places = (options.capture, options.face)
    whole, test = (
        FrameSet.read(*places, part, options.size, settings.run.image_memory_gb).to(device)
        for part in ("train", "test")
    )
    _, chosen = split(options)
    hidden = [index for index, serial in enumerate(whole.serials) if serial in chosen]
    kept = [index for index in range(len(whole.serials)) if index not in hidden]
    count = options.timesteps
    some = [kept[index] for index in spread(len(kept), SEEN_CAMERAS)]
    sets = [MeasuredSet("seen", whole, spread(len(whole), count), some)]
    for sequence in dict.fromkeys(test.sequences):
        own = [index for index, name in enumerate(test.sequences) if name == sequence]
        times = [own[index] for index in spread(len(own), count)]
        sets.append(MeasuredSet(sequence.lower(), test, times, kept))
        sets.append(MeasuredSet(f"{sequence.lower()} views", test, times, hidden))
    return [*sets, MeasuredSet("views", whole, spread(len(whole), count), hidden)]


def refuse_seen_cameras(sdf: Path, held_out: Sequence[str]) -> None:
    """Raises `UserError` if stage I was trained on a camera that is held out."""
    seen = sorted(set(read_seen_cameras(sdf)) & set(held_out))
    if seen:
        raise UserError(
            f"{sdf} was trained with cameras that are to be held out: {', '.join(seen)}; train "
            "another one with `train-sdf --held-out-cameras` and the same words."
        )


def train(options: argparse.Namespace) -> None:
    """Train a method and write a table of what was measured on the way."""
    device = choose_device()
    settings, seconds, elapsed = read_settings(options), 60 * options.minutes, 0.0
    name = options.name or (options.profile if options.method == "avatar" else options.method)
    sets = read_sets(options, settings, device)
    if options.steps:
        settings, seconds = shorten(settings, options.steps), math.inf
    elif not isinstance(settings, SplatSettings) or settings.learning_rates.final < 1:
        # Such rates need the number of steps.
        with make_training(options, settings, device) as training:
            steps, elapsed = fit_steps(training, settings, seconds)
        settings = shorten(settings, steps)
    # A baseline's rate falls for ever, so it uses all the time, however long steps have become.
    endless = isinstance(settings, NerfaceSettings | HavatarSettings) and not options.steps
    steps = sys.maxsize if endless else settings.steps
    tables: list[pd.DataFrame] = []
    with make_training(options, settings, device) as training:
        step = 0
        while True:
            last = elapsed >= seconds or step >= steps or training.is_over(step)
            place = {"profile": name, "seconds": elapsed, "step": step}
            found = measure_sets(training, sets, last or not options.parts_at_end)
            tables.append(found.assign(**place)[[*place, *found]])
            pd.concat(tables).to_csv(options.output, index=False)
            for row in found[found["region"] == WHOLE].itertuples():
                print(f"{name} {elapsed:6.0f} s, step {step:6}: {row.set:12} "
                      f"{row.psnr_db:.2f} dB, SSIM {row.ssim:.4f}", flush=True)  # fmt: skip
            if last:
                print(write_budget(found))
                break
            until = min(seconds, elapsed + max(options.interval, elapsed / 2))
            step, taken = train_for(until - elapsed, training, step, steps)
            elapsed += taken


def measure_sets(training: Training, sets: list[MeasuredSet], in_parts: bool) -> pd.DataFrame:
    """What `measure` finds, with the columns ``set`` and ``region``."""
    with as_saved(training) as method:
        tables = [measure(method, one, in_parts).assign(set=one.name) for one in sets]
    found = pd.concat(tables).rename_axis("region").reset_index()
    return found[["set", *found.columns.drop("set")]]


def train_for(seconds: float, training: Training, step: int, steps: int) -> tuple[int, float]:
    """Train on for so long or to the last step; the step after and the seconds it took."""
    synchronise()
    begin = time.perf_counter()
    until = begin + seconds
    while time.perf_counter() < until and step < steps and not training.is_over(step):
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
    blocks = {}
    for name in ("split", "densify"):
        block = getattr(settings, name)
        times = {key: getattr(block, key) for key in ("start", "every", "stop")}
        times = {key: max(1, time * steps // settings.steps) for key, time in times.items()}
        blocks[name] = block.model_copy(update=times)
    return settings.model_copy(update={"steps": steps, **blocks})


def plot(options: argparse.Namespace) -> None:
    """PSNR and SSIM of FREE and held-out cameras over time as one SVG of four panels."""
    table = pd.concat([pd.read_csv(path) for path in options.tables])
    table = table[table["region"] == WHOLE]
    parts = [
        panel(table[table["set"] == held_out], column, held_out, 60 + 330 * x, 30 + 220 * y)
        for y, held_out in enumerate(("free", "views"))
        for x, column in enumerate(("psnr_db", "ssim"))
    ]
    options.output.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 470" font-family="sans-serif" '
        f'font-size="11">{"".join(parts)}{legend(table["profile"].unique())}</svg>\n'
    )


def panel(rows: pd.DataFrame, column: str, held_out: str, left: int, top: int) -> str:
    """One curve for each name in the column ``profile``, 270 × 160 pixels."""
    last = rows["seconds"].max()
    low, high = rows[column].quantile(0.1), rows[column].max()
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    title = {"free": "FREE", "views": "held-out cameras"}[held_out]
    unit, digits = {"psnr_db": ("PSNR, dB", 1), "ssim": ("SSIM", 3)}[column]
    parts = [
        f'<rect x="{left}" y="{top}" width="270" height="160" fill="none" stroke="#999"/>',
        f'<text x="{left}" y="{top - 8}">{title}: {unit}, over minutes</text>',
    ]
    for quarter in range(5):
        x, y = left + 67.5 * quarter, top + 160 - 40 * quarter
        value, minutes = low + (high - low) * quarter / 4, last / 60 * quarter / 4
        parts.append(
            f'<path d="M{left} {y}h270M{x} {top}v160" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.{digits}f}</text>'
            f'<text x="{x}" y="{top + 175}" text-anchor="middle">{minutes:.1f}</text>'
        )
    for index, (_, own) in enumerate(rows.groupby("profile", sort=False)):
        x = left + 270 * own["seconds"] / last
        y = top + 160 * (1 - ((own[column] - low) / (high - low)).clip(0, 1))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    return "".join(parts)


def legend(names: Sequence[str]) -> str:
    """The names of the curves in their colours, in one line below the panels."""
    return "".join(
        f'<text x="{60 + 120 * index}" y="458" font-size="13" '
        f'fill="{COLOURS[index % len(COLOURS)]}">{name}</text>'
        for index, name in enumerate(names)
    )


def main() -> None:
    """Train one profile or method, or draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
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
    training.add_argument("--steps", type=int, help="in place of the minutes")
    training.add_argument(
        "--interval", type=float, default=15, help="least seconds between two measurements"
    )
    training.add_argument("--seed", type=int, default=0, help="of all random draws")
    training.add_argument("--parts-at-end", action="store_true", help="else in each measurement")
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
