"""`estimate`: jobs, time, disk and money that a run of a sample sheet takes, before it starts.

What a rule takes is proportional to its *work*: pixels of frames, timesteps, pixels that a training
draws (`amounts`). How much a unit of work takes is measured, by Snakemake's benchmark files and the
folders of a finished run, the *reference*, or stored here. So a reference should be of the same
hardware and nearly the same settings; in a short one start-up and compilation count as work.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import select_cameras
from eavatar.capture.recording import check_videos
from eavatar.errors import UserError
from eavatar.io import read_cameras, read_sequences, require
from eavatar.preflight.subjects import GENERATED_SEQUENCES, Plan, make_plans
from eavatar.provenance import NAME, find_records, read_record
from eavatar.settings import (
    ALTERNATE,
    BackendSettings,
    Config,
    parse_settings,
    select,
    validate,
    variant_contents,
)

logger = logging.getLogger(__name__)

# Snakemake looks every 30 s, and more often in the first 16.
UNSEEN = "its CPU-hours lack up to the last 30 s of each job, which Snakemake does not see"
GENERATED_CAMERAS = tuple(map(str, range(16)))
PER_SEQUENCE = ("ingest", "matte", "detect_landmarks")
ONCE = (
    "check", "choose_sequences", "calibrate", "fit_face", "refine_face", "measure_gaze",
    "measure_appearance", "generate_prior", "align_prior", "floors", "metrics", "report",
)  # fmt: skip
UNTIMED = {
    "check",
    "choose_sequences",
    "calibrate",
    "metrics",
    "report",
    "prepare_prior",
}  # seconds
ON_GPU = {
    "run_generator", "train_sdf", "train_splat", "train_nerface", "train_havatar", "evaluate",
    "floors",
}  # fmt: skip
TRAINED_WITH = {  # the blocks that decide a training: alike ones are made once
    "train_sdf": ("sdf",),
    "train_splat": ("sdf", "splat"),
    "train_nerface": ("nerface",),
    "train_havatar": ("havatar",),
}
METHODS = {  # what draws a variant to what trains it
    "avatar": ("train_sdf", "train_splat"),
    "nerface": ("train_nerface",),
    "havatar": ("train_havatar",),
    "images": (),
}
FOLDERS = {  # of a subject's results, and what their sizes grow with: the work, or the jobs
    "raw": ("demo_capture", "work"),
    "truth": ("demo_capture", "work"),
    "capture": ("ingest", "work"),
    "face": ("fit_face", "work"),
    "prior": ("align_prior", "jobs"),
    "sdf": ("train_sdf", "jobs"),
    "splat": ("train_splat", "jobs"),
    "nerface": ("train_nerface", "jobs"),
    "havatar": ("train_havatar", "jobs"),
    "tables": ("evaluate", "jobs"),
}


@dataclass(frozen=True)
class Size:
    """How much was recorded of a subject.

    Attributes:
        sequences: how many are used.
        timesteps: of all of them.
        held_out: timesteps of those that are measured.
        cameras: serial numbers.
    """

    sequences: int
    timesteps: int
    held_out: int
    cameras: tuple[str, ...]

    @property
    def frames(self) -> int:
        return self.timesteps * len(self.cameras)

    def measured(self, config: Config) -> int:
        """Frames that are drawn and measured, of a variant's settings."""
        words = config.held_out_cameras
        chosen = self.cameras[1::2] if words == (ALTERNATE,) else select(self.cameras, words or "*")
        return self.held_out * len(chosen)


@dataclass(frozen=True)
class Task:
    """Jobs of a rule.

    Attributes:
        rule: its name.
        jobs: how many.
        work: of all of them, see `amounts`.
        gpu: whether they ask for a GPU.
    """

    rule: str
    jobs: int
    work: float
    gpu: bool


@dataclass(frozen=True)
class Rate:
    """What a unit of a rule's work takes: elapsed seconds of a job, and of all CPU cores."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Reference:
    """What units of work take.

    Attributes:
        name: of the run, and its hardware.
        rates: by rule.
        sizes: bytes by folder, for a unit of what `FOLDERS` names.
    """

    name: str
    rates: Mapping[str, Rate]
    sizes: Mapping[str, float]


# One H100, torch 2.11, for the trainings (docs/performance.md: stage I's 193 s for 10,000 steps,
# a step of stage II with four images of 2048², 23.1 ms); NeRFace and HAvatar one H200 (19.6 ms a
# step of 4 × 1024 rays with 128 samples, 80.8 ms of two images of 512²). One busy CPU thread each.
# All else the demo on two CPU cores, from a fresh checkout, 1472 frames of 256² of which 192 are
# measured (ibid., "A whole subject, by rule"), `evaluate` and `floors` among it, which are faster
# on a GPU. Sizes: `eavatar.preflight.machine`, and the demo's.
_DEMO_PIXELS, _DEMO_MEASURED = 1472 * 256**2, 192 * 256**2
STORED = Reference(
    "stored figures: trainings on one H100, all else on two CPU cores",
    {
        "demo_capture": Rate(66 / 1472, 76 / 1472),
        "ingest": Rate(15 / _DEMO_PIXELS, 18 / _DEMO_PIXELS),
        "matte": Rate(20 / _DEMO_PIXELS, 31 / _DEMO_PIXELS),
        "fit_face": Rate(3 / 92, 3 / 92),
        "refine_face": Rate(2 / 1472, 2 / 1472),
        "measure_gaze": Rate(2 / 1472, 2 / 1472),
        "measure_appearance": Rate(1 / 1472, 1 / 1472),
        "generate_prior": Rate(2, 2),
        "align_prior": Rate(12, 12),
        "floors": Rate(19 / _DEMO_MEASURED, 21 / _DEMO_MEASURED),
        "evaluate": Rate(20 / _DEMO_MEASURED, 26 / _DEMO_MEASURED),
        "train_sdf": Rate(*2 * [193 / (10000 * 16 * 256**2)]),
        "train_splat": Rate(*2 * [0.0231 / (4 * 2048**2)]),
        "train_nerface": Rate(*2 * [0.0196 / (4 * 1024 * 128)]),
        "train_havatar": Rate(*2 * [0.0808 / (2 * 512**2)]),
    },
    {
        "raw": 18e6 / 1472,
        "truth": 4e6 / 1472,
        "capture": 0.33,
        "face": 1e5,
        "prior": 1e6,
        "sdf": 5e7,
        "splat": 3e8,
        "nerface": 1e7,
        "havatar": 3e8,
        "tables": 1e8,
    },
)


def estimate(
    config: str,
    sheet: Path | None,
    subjects: Sequence[str],
    reference: Path | None,
    price: float | None,
) -> None:
    """Print what a run takes.

    Args:
        config: a YAML file of all settings, or the settings as JSON.
        sheet: the sample sheet; the one that the settings name if None.
        subjects: names of those to run; all if empty.
        reference: ``results/<subject>`` of a finished run; stored figures if None.
        price: of a GPU's hour.
    Raises:
        UserError: the sheet or the reference cannot be read, or the price cannot be.
    """
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--gpu-hour {price:g} is no price; give 0 or more.")
    content = parse_settings(config)
    plans, faults = make_plans(sheet or Path(str(content.get("subjects"))), content, {})
    unknown = [name for name in subjects if name not in plans]
    if unknown:
        why = faults.get(unknown[0], f"the sheet lists {', '.join(plans)}.")
        raise UserError(f"subject '{unknown[0]}' cannot be estimated: {why}")
    for sentence in faults.values():
        logger.warning("not counted: %s", sentence)
    chosen = [plan for name, plan in plans.items() if not subjects or name in subjects]
    tasks = sum_tasks(task for plan in chosen for task in list_tasks(plan, measure(plan)))
    known = read_reference(reference) if reference else STORED
    print("\n".join(describe(tasks, known, len(chosen), price)))


def measure(plan: Plan) -> Size:
    """How much was recorded, from the length of one camera's video of each sequence.

    Raises:
        UserError: that video is missing, or it or the calibration cannot be read.
    """
    names, ingest = plan.sequences, plan.config.capture.ingest
    if plan.subject.capture is None:
        demo = plan.config.capture.demo
        lengths = dict.fromkeys(GENERATED_SEQUENCES, demo.timesteps)
        lengths["FREE"] = demo.held_out_timesteps
        cameras: Sequence[str] = GENERATED_CAMERAS
        every = ingest.every
    else:
        capture = open_capture(plan.subject.capture)
        cameras = select_cameras(ingest, capture)
        headers = check_videos(capture, names.names, cameras[:1])
        lengths = {name: headers[name][cameras[0]].frames for name in names.names}
        every = 1 if capture.prepared else ingest.every
    steps = {name: -(-lengths[name] // every) for name in names.names}
    held_out = sum(steps[name] for name in names.test)
    return Size(len(steps), sum(steps.values()), held_out, tuple(cameras))


def amounts(config: Config, size: Size) -> dict[str, float]:
    """The work of each rule with some settings; of those that are not named it is 1 a job."""
    sdf, splat, nerface, havatar = config.sdf, config.splat, config.nerface, config.havatar
    pixels = size.frames * config.capture.ingest.image_size**2
    measured = size.measured(config) * splat.image_size**2
    return {
        "demo_capture": size.frames,
        "ingest": pixels,
        "matte": pixels,
        "detect_landmarks": size.frames,
        "fit_face": size.timesteps,
        "refine_face": size.frames,
        "measure_gaze": size.frames,
        "measure_appearance": size.frames,
        "floors": size.held_out * len(size.cameras) * splat.image_size**2,
        "evaluate": measured,
        "train_sdf": sdf.steps
        * sdf.timesteps_per_step
        * sdf.views_per_timestep
        * sdf.image_size**2,
        "train_splat": splat.steps * splat.views_per_step * splat.image_size**2,
        "train_nerface": nerface.steps
        * nerface.images_per_step
        * nerface.rays_per_image
        * (nerface.samples + nerface.fine_samples),
        "train_havatar": havatar.steps * havatar.images_per_step * havatar.image_size**2,
    }


def list_tasks(plan: Plan, size: Size) -> list[Task]:
    """All jobs of a subject."""
    own, backends = plan.config, (plan.config.capture.matte, plan.config.face.landmarks)
    used = {name for name, block in zip(PER_SEQUENCE[1:], backends, strict=True) if _on_gpu(block)}
    rules = list(ONCE)
    rules += ["demo_capture"] if plan.subject.capture is None else []
    rules += ["prepare_prior", "run_generator"] if own.prior.generate.chosen.generator else []
    jobs = [(rule, size.sequences, own) for rule in PER_SEQUENCE]
    jobs += [(rule, 1, own) for rule in rules]
    jobs += [(rule, 1, settings) for rule, settings in list_trainings(plan)]
    jobs += [("evaluate", 1, settings) for settings in plan.variants.values()]
    return [
        Task(rule, count, amounts(settings, size).get(rule, 1.0), rule in ON_GPU | used)
        for rule, count, settings in jobs
    ]


def _on_gpu(block: BackendSettings) -> bool:
    return block.chosen.gpu != "unused"


def list_trainings(plan: Plan) -> list[tuple[str, Config]]:
    """The trainings of all variants by rule, of those that learn alike the first."""
    found: dict[tuple[str, ...], tuple[str, Config]] = {}
    for name, settings in plan.variants.items():
        for rule in METHODS[plan.variant(name).method]:
            texts = [
                getattr(settings, block).model_dump_json(exclude={"run"})
                for block in TRAINED_WITH[rule]
            ]
            key = (rule, str(settings.seeds), str(settings.held_out_cameras), *texts)
            found.setdefault(key, (rule, settings))
    return list(found.values())


def sum_tasks(tasks: Iterable[Task]) -> list[Task]:
    """One task for each rule, in the order of their first."""
    sums: dict[str, Task] = {}
    for task in tasks:
        before = sums.get(task.rule, Task(task.rule, 0, 0.0, False))
        sums[task.rule] = Task(
            task.rule, before.jobs + task.jobs, before.work + task.work, before.gpu or task.gpu
        )
    return list(sums.values())


def read_reference(results: Path) -> Reference:
    """What units of work took in a finished run.

    Args:
        results: ``results/<subject>``, with Snakemake's benchmarks and its provenance.

    Raises:
        UserError: one of its files is missing or malformed.
    """
    record = read_record(results / f"metrics.{NAME}")
    where = f"settings of {results}"
    content = record.settings.get("settings") or {}
    own = validate(Config, content, where)
    trees = {name: validate(Config, c, where) for name, c in variant_contents(content).items()}
    size = _measure_results(results / "capture")
    folder = require(results / "benchmarks", "the folder of Snakemake's benchmarks")
    tasks, rates = {}, {}
    for rule in sorted({path.stem for path in folder.iterdir()}):
        files = [*folder.glob(f"{rule}.tsv"), *folder.glob(f"{rule}/*.tsv")]
        settings = [trees.get(path.stem, own) for path in files]
        every = len(files) if rule in PER_SEQUENCE else 1  # whose work is of all sequences
        work = sum(amounts(each, size).get(rule, 1.0) for each in settings) / every
        table = pd.concat([pd.read_csv(path, sep="\t") for path in files])
        rates[rule] = Rate(table["s"].sum() / work, table["cpu_time"].sum() / work)
        tasks[rule] = Task(rule, len(files), work, False)
    sizes = {
        name: sum(path.stat().st_size for path in (results / name).rglob("*") if path.is_file())
        / getattr(tasks[rule], unit)
        for name, (rule, unit) in FOLDERS.items()
        if rule in tasks
    }
    hardware = [each.hardware for each in find_records(results).values() if each.verb != "metrics"]
    machine = hardware[-1] if hardware else record.hardware
    return Reference(f"{results} on {machine}; {UNSEEN}", rates, sizes)


def _measure_results(capture: Path) -> Size:
    """How much was ingested into ``results/<subject>/capture``."""
    split = read_sequences(capture / "sequences.json")
    names = dict.fromkeys((*split.train, *split.test))
    steps = {name: pd.read_csv(capture / f"{name}.csv")["timestep"].nunique() for name in names}
    held_out = sum(steps[name] for name in split.test)
    cameras = tuple(read_cameras(capture / "cameras.json"))
    return Size(len(names), sum(steps.values()), held_out, cameras)


def describe(
    tasks: Sequence[Task], reference: Reference, subjects: int, price: float | None
) -> list[str]:
    """The lines of the estimate.

    Args:
        tasks: one for each rule.
        reference: what units of work take.
        subjects: how many there are.
        price: of a GPU's hour.
    """
    rows = [(task.rule, task.jobs, *_hours(task, reference)) for task in tasks]
    rows.append(("overview", 1, 0.0, 0.0, 0.0))
    sums = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    sizes = _gigabytes(tasks, reference)
    parts = ", ".join(f"{name} {size:.2f}" for name, size in sizes.items())
    unknown = [t.rule for t in tasks if t.rule not in {*reference.rates, *UNTIMED}]
    lines = [f"subjects: {subjects}; measured: {reference.name}", ""]
    lines.append(f"{'rule':20}{'jobs':>8}{'hours':>12}{'CPU-hours':>12}{'GPU-hours':>12}")
    for name, jobs, *hours in (*rows, ("all", *sums)):
        lines.append(f"{name:20}{jobs:8}" + "".join(f"{each:12.3f}" for each in hours))
    lines += ["", f"disk: {sum(sizes.values()):.2f} GB ({parts})"]
    if price is not None:
        lines.append(f"cost: {sums[3] * price:.2f} at {price:g} a GPU-hour")
    if unknown:
        lines.append(f"not measured, and not in these sums: {', '.join(unknown)}")
    return lines


def _hours(task: Task, reference: Reference) -> tuple[float, float, float]:
    """Elapsed, of CPU cores, and of GPUs; zero for what is not measured."""
    rate = reference.rates.get(task.rule, Rate(0.0, 0.0))
    elapsed = task.work * rate.seconds / 3600
    return elapsed, task.work * rate.cpu_seconds / 3600, elapsed * task.gpu


def _gigabytes(tasks: Sequence[Task], reference: Reference) -> dict[str, float]:
    """What is written, by folder of the results."""
    by_rule = {task.rule: task for task in tasks}
    return {
        name: reference.sizes[name] * getattr(by_rule[rule], unit) / 1e9
        for name, (rule, unit) in FOLDERS.items()
        if rule in by_rule and name in reference.sizes
    }
