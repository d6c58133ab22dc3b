"""What a prior brings: ``python -m benchmarks.prior_gain train …``, then ``… report folder``.

Trains stage I of a subject whose true head is known, with each kind of prior and seed, and from its
surface stage II for a fixed number of steps. The subject's results must go as far as the masks and
``prior/aligned.ply``. The kinds:

template      the subject's own prior, whatever its source
good          the true head's outside, with other faces and noise, aligned by `align_prior`:
              stands for a generator that works
equation_17   the good one, but Eq. 17 alone takes note of it, and a sphere is the start
none          no prior: ``sdf.prior.enabled: false``

The surface is measured at some steps as it would be saved then: weights averaged, cells halved. Its
errors are distances from points of the true head to it, % of the head size, as `eavatar score` has
them. Seconds count from before the images are read and stand still while it is measured. PSNR and
SSIM are those of `benchmarks.budget`.

A run writes into ``<output>/<prior>-<seed>`` as it goes; what is complete there is not run again.
``--lanes 0 0 1 1`` works on two runs at a time on each of two GPUs, a process each.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from benchmarks.align import tessellate
from benchmarks.budget import WHOLE, MeasuredSet, measure
from benchmarks.convergence import shorten, spread, train_for
from benchmarks.device import synchronise
from benchmarks.prior_gain_report import AVATAR, PRIORS, SURFACE, report
from eavatar.arrays import Float64
from eavatar.data.frames import FrameSet
from eavatar.device import choose_device
from eavatar.io import Mesh, atomic, read_mesh, write_mesh
from eavatar.landmark_indices import CHIN, JAW_ENDS
from eavatar.meshes import sample_surface
from eavatar.prior.align import align_prior
from eavatar.sdf import train as stage_one
from eavatar.settings import Config, SdfSettings, merge, read_config, validate
from eavatar.splat import train as stage_two
from eavatar.tables.avatar_method import AvatarMethod
from eavatar.training.loop import seed_everything
from eavatar.view.score import TrueHead, face_points, read_true_head
from tests.scenes.heads import cut

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
CHANGES: dict[str, dict[str, Any]] = {  # of the block sdf, by the kind of prior
    "template": {},
    "good": {},
    "equation_17": {"prior": {"start": False}, "weights": {"prior_distance": 0.0}},
    "none": {"prior": {"enabled": False}},
}
# Where stage I looks at the whole grid anyway, so that looking at it here changes nothing.
STEPS = (0, 20, 60, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10000)
GOOD_FACES = 80_000  # edges of 2 mm; a generator's mesh has as many or more
GOOD_NOISE = 0.01  # of the head size, at each vertex and axis
GOOD_SEED = 0
EYES_AND_LIPS = slice(36, 68)  # landmarks
NEAR = 0.012  # metres around them
BEHIND = 0.03  # metres behind the ends of the jaw line
SHELL = 0.006  # metres from the outermost points, which are that far apart on steep parts
ROWS = 60  # of cells of directions, twice as many columns: 5 mm on a head
SAMPLES = 400_000


@dataclass(frozen=True)
class Run:
    """A training: the kind of its prior, and its seed."""

    prior: str
    seed: int

    @classmethod
    def parse(cls, text: str) -> Run:
        """From ``<prior>:<seed>``."""
        prior, _, seed = text.partition(":")
        if prior not in CHANGES:
            raise argparse.ArgumentTypeError(f"{prior} is none of {', '.join(CHANGES)}")
        return cls(prior, int(seed))

    def __str__(self) -> str:
        return f"{self.prior}-{self.seed}"


@dataclass(frozen=True)
class Regions:
    """Points of the true head, by region, in its model's frame.

    Attributes:
        head: the true head.
        points: (N, 3) of each region, metres.
    """

    head: TrueHead
    points: Mapping[str, Float64]

    @classmethod
    def of(cls, head: TrueHead) -> Regions:
        landmarks = head.landmarks
        face = face_points(head.mesh, landmarks)
        outer = outer_points(head.mesh, float(landmarks[CHIN, 1]))
        behind = landmarks[list(JAW_ENDS), 2].mean() - BEHIND
        near = cKDTree(landmarks[EYES_AND_LIPS]).query(face)[0] < NEAR
        points = {"face": face, "features": face[near], "whole": outer}
        return cls(head, points | {"behind": outer[outer[:, 2] < behind]})

    def measure(self, surface: Mesh) -> dict[str, float]:
        """Mean error of a canonical surface by region, % of the head size."""
        return {
            name: float(self.head.distances(points, surface).mean())
            for name, points in self.points.items()
        }


def outer_points(mesh: Mesh, floor: float) -> Float64:
    """The points of a head above a height that lie farthest out, (N, 3).

    One for each cell of directions from its middle, so that nothing within the head counts.
    """
    samples, _ = sample_surface(mesh, SAMPLES, seed=0)
    above = samples[samples[:, 1] > floor]
    offsets = samples - (above.min(axis=0) + above.max(axis=0)) / 2
    lengths = np.linalg.norm(offsets, axis=1)
    outwards = lengths.argsort()[::-1]
    x, y, z = (offsets[outwards] / lengths[outwards, None]).T
    rows = np.floor((y + 1) / 2 * ROWS)
    columns = np.floor((np.arctan2(x, z) / np.pi + 1) * ROWS)
    _, first = np.unique(np.stack([rows, columns]), axis=1, return_index=True)
    outer: Float64 = samples[outwards[first]]
    return outer[outer[:, 1] > floor]


def outer_shell(mesh: Mesh, regions: Regions) -> Mesh:
    """A head without teeth, mouth and the backs of the eyes, as generators have it."""
    outermost = cKDTree(regions.points["whole"]).query(mesh.vertices)[0] < SHELL
    return cut(mesh, outermost | (mesh.vertices[:, 1] < regions.head.landmarks[CHIN, 1]))


def make_priors(options: argparse.Namespace, config: Config, regions: Regions) -> None:
    """Write the good prior and its alignment, and the errors of both priors themselves."""
    folder, head = options.output / "good", regions.head
    if (options.output / PRIORS).exists():
        return
    mesh = tessellate(outer_shell(head.mesh, regions), GOOD_FACES)
    random = np.random.default_rng(GOOD_SEED)
    noise = GOOD_NOISE * head.size * random.normal(size=mesh.vertices.shape)
    raw = folder / "raw.ply"
    write_mesh(raw, Mesh((mesh.vertices + noise).astype(np.float32), mesh.faces))
    known = options.results / "capture", options.results / "face"
    align_prior(config.prior.align, GOOD_SEED, raw, *known, folder)
    errors = [
        {"prior": kind, **regions.measure(read_mesh(find_prior(options, kind)))}
        for kind in ("template", "good")
    ]
    with atomic(options.output / PRIORS) as temporary:
        pd.DataFrame(errors).to_csv(temporary, index=False)


def find_prior(options: argparse.Namespace, kind: str) -> Path:
    """The aligned mesh of a kind."""
    folder = options.results / "prior" if kind == "template" else options.output / "good"
    found: Path = folder / "aligned.ply"
    return found


def write_rows(path: Path, run: Run, rows: list[dict[str, Any]]) -> None:
    """A run's table, each row with its prior and seed."""
    table = pd.DataFrame(rows)
    table.insert(0, "prior", run.prior)
    table.insert(1, "seed", run.seed)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def sdf_settings(config: Config, kind: str, steps: int | None) -> SdfSettings:
    """Stage I's settings for a kind of prior."""
    change = merge(CHANGES[kind], {"steps": steps or config.sdf.steps})
    return validate(SdfSettings, merge(config.sdf.model_dump(), change), kind)


def train_surface(options: argparse.Namespace, config: Config, run: Run, regions: Regions) -> None:
    """Stage I, measured on the way; writes the model and `SURFACE`."""
    settings = sdf_settings(config, run.prior, options.sdf_steps)
    folder, steps, rows = options.output / str(run), settings.steps, []
    if (folder / "sdf" / "model.safetensors").exists():
        return
    begin = time.perf_counter()
    seed_everything(run.seed)
    prior = find_prior(options, run.prior) if settings.prior.enabled else None
    places = options.results / "capture", options.results / "face", prior
    with stage_one.prepare(settings, run.seed, *places, choose_device()) as task:
        synchronise()
        step, seconds = 0, time.perf_counter() - begin
        for until in [*(step for step in STEPS if step < steps), steps]:
            seconds += advance(task, step, until)
            step = until
            errors = regions.measure(averaged_surface(task))
            rows.append({"step": step, "seconds": seconds, **errors})
            write_rows(folder / SURFACE, run, rows)
            print(f"{run} step {step:5}, {seconds:4.0f} s: {errors['face']:.3f} %", flush=True)
        with task.optimiser.averaged():
            stage_one.save(task, folder / "sdf")


def advance(task: stage_one.SdfTraining, first: int, until: int) -> float:
    """Make some steps; the seconds that they took."""
    begin = time.perf_counter()
    for step in range(first, until):
        task.step(step)
    synchronise()
    return time.perf_counter() - begin


def averaged_surface(task: stage_one.SdfTraining) -> Mesh:
    """The surface that would be saved, canonical."""
    with task.optimiser.averaged():
        surface = stage_one.neutral_surface(task)
    return Mesh(surface.vertices.cpu().numpy(), surface.faces.cpu().numpy())


def train_avatar(options: argparse.Namespace, config: Config, run: Run) -> None:
    """Stage II from the run's surface, all cameras of some test timesteps; writes `AVATAR`."""
    folder, device = options.output / str(run), choose_device()
    if (folder / AVATAR).exists() or not options.splat_steps:
        return
    settings = shorten(config.splat, options.splat_steps)
    seed_everything(run.seed)
    places = options.results / "capture", options.results / "face"
    with stage_two.prepare(settings, run.seed, *places, folder / "sdf", device) as task:
        step, seconds = train_for(math.inf, task, 0, settings.steps)
        test = FrameSet.read(*places, "test", settings.image_size).to(device)
        rows = []
        for sequence in dict.fromkeys(test.sequences):
            own = [index for index, name in enumerate(test.sequences) if name == sequence]
            chosen = [own[index] for index in spread(len(own))]
            held_out = MeasuredSet(sequence, test, chosen, list(range(len(test.serials))))
            with task.optimiser.averaged():
                found = measure(AvatarMethod(task.avatar), held_out).loc[WHOLE]
            psnr, ssim = found["psnr_db"], found["ssim"]
            row = {"set": sequence, "step": step, "seconds": seconds}
            rows.append(row | {"psnr_db": psnr, "ssim": ssim})
            print(f"{run} {sequence}, {seconds:4.0f} s: {psnr:.2f} dB, {ssim:.4f}", flush=True)
    write_rows(folder / AVATAR, run, rows)


def train(options: argparse.Namespace) -> None:
    """Train all runs, one after the other or in lanes."""
    config = read_config(CONFIG, *options.settings)
    regions = Regions.of(read_true_head(options.results, options.truth))
    make_priors(options, config, regions)
    if options.lanes:
        train_in_lanes(options)
        return
    for run in options.only:
        train_surface(options, config, run, regions)
        train_avatar(options, config, run)


def train_in_lanes(options: argparse.Namespace) -> None:
    """A process for each run, on whichever lane is free; one that fails stops no other."""
    waiting = deque(options.only)

    def work(card: str) -> None:
        while waiting:
            run = waiting.popleft()
            folder = options.output / str(run)
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.prior_gain", *sys.argv[1:]]
            command += ["--only", f"{run.prior}:{run.seed}", "--lanes"]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card}
            with (folder / "log.txt").open("w") as log:
                done = subprocess.run(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
                )
            print(f"{run}: {f'failed, {log.name}' if done.returncode else 'done'}", flush=True)

    with ThreadPoolExecutor(len(options.lanes)) as pool:
        list(pool.map(work, options.lanes))


def main() -> None:
    """Train runs, in lanes or one, or report on them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    verbs = parser.add_subparsers(required=True)
    training = verbs.add_parser("train", help="train and measure")
    training.set_defaults(function=train)
    training.add_argument("--results", type=Path, required=True, help="results/<subject>")
    training.add_argument("--truth", type=Path, required=True, help="as of `eavatar score`")
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--settings", type=Path, nargs="*", default=[], help="over config.yaml")
    training.add_argument("--sdf-steps", type=int, help="else the settings' number")
    training.add_argument("--splat-steps", type=int, default=0, help="0: without stage II")
    every = [Run(kind, seed) for seed in range(3) for kind in CHANGES]
    training.add_argument("--only", type=Run.parse, nargs="+", default=every, help="prior:seed")
    training.add_argument("--lanes", nargs="*", default=[], help="the GPU of each, by number")
    reporting = verbs.add_parser("report", help="a table and a figure of what is there")
    reporting.set_defaults(function=lambda options: report(options.output))
    reporting.add_argument("output", type=Path)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
