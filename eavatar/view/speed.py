"""How long and fast an avatar trained, and how fast it is drawn: ``speed.json`` (Table 5)."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import CameraBatch
from eavatar.io import read_cameras, require, write_json
from eavatar.threads import count_threads
from eavatar.view.player import WARM_UP, Player, most_frontal, read_drive

MIN_FRAMES, MIN_SECONDS = 30, 2.0  # measured, so that the median is steady


def measure_speed(
    avatar: Path, log: Path, tracking: Path, cameras: Path, benchmarks: Sequence[Path], output: Path
) -> Path:
    """Draw a tracked sequence from its most frontal camera and write ``speed.json``.

    Its keys: ``frames_per_second`` (of the median frame, from numbers on the device to the finished
    image there), ``frames`` measured, ``training_hours`` (null if a benchmark is missing),
    ``steps_per_second`` of stage II (null if its log has no times), ``gaussians``, ``image_size``,
    ``hardware``.

    Args:
        avatar: ``splat/<variant>``.
        log: ``splat/<variant>/log.csv``.
        tracking: ``face/tracking/<sequence>.npz``.
        cameras: ``capture/cameras.json``.
        benchmarks: Snakemake's of both stages.
        output: ``speed.json``.
    Raises:
        UserError: a file is missing or malformed, or tracking and avatar do not fit.
    """
    model = load_avatar(avatar)
    milliseconds = time_frames(Player(model), tracking, cameras)
    hours = [_read_hours(path) for path in benchmarks]
    content = {
        "frames_per_second": 1e3 / statistics.median(milliseconds),
        "frames": len(milliseconds),
        "training_hours": sum(hours) if all(hours) else None,
        "steps_per_second": read_rate(log),
        "gaussians": len(model.neutral),
        "image_size": model.settings.image_size,
        "hardware": describe_device(model.device),
    }
    return write_json(output, content)


def read_rate(log: Path) -> float | None:
    """Training steps per second: the median between rows of a log, which neither compilation at the
    start nor a checkpoint in between moves; None of a log of one row, or without times."""
    table = pd.read_csv(require(log, "the training log"))
    if len(table) < 2 or "seconds" not in table:
        return None
    return float(np.median(np.diff(table["step"]) / np.diff(table["seconds"])))


def time_frames(player: Player, tracking: Path, cameras: Path) -> list[float]:
    """Milliseconds of each frame after a warm-up, the sequence repeated until there are enough."""
    avatar = player.avatar
    track = read_drive(tracking, avatar.settings.head.expression_size, neutral=False)
    known = read_cameras(cameras)
    side, device = avatar.settings.image_size, avatar.device
    camera = known[most_frontal(known, track)].resize(side, side)
    view = CameraBatch.of([camera], device)
    expressions, poses = (
        torch.from_numpy(values).to(device) for values in (track.expression, track.poses)
    )
    times: list[float] = []
    while len(times) < WARM_UP + MIN_FRAMES or sum(times) < 1e3 * MIN_SECONDS:
        timestep = len(times) % len(track)
        start = time.perf_counter()
        player(expressions[timestep], poses[timestep], view.intrinsics, view.world_to_camera)
        times.append(1e3 * (time.perf_counter() - start))
    return times[WARM_UP:]


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the threads that are used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(names), platform.machine())}, {count_threads()} threads"


def _read_hours(path: Path) -> float:
    """Hours of a rule by Snakemake's benchmark; 0 if there is none."""
    if not path.is_file():
        return 0.0
    with path.open(newline="") as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"]) / 3600
