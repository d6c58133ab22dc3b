"""How long and fast a method trained, and how fast it draws: ``speed.json`` (Table 5)."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.data.methods import Method, ViewRequest
from eavatar.device import choose_device, describe_device
from eavatar.io import Tracking, read_cameras, read_tracking, require, write_json
from eavatar.tables.avatar_method import AvatarMethod
from eavatar.tables.methods import open_method
from eavatar.view.player import WARM_UP, Player, most_frontal, read_drive

MIN_FRAMES, MIN_SECONDS = 30, 2.0  # measured, so that the median is steady


def measure_speed(
    method: str,
    source: Path,
    log: Path,
    tracking: Path,
    cameras: Path,
    benchmarks: Sequence[Path],
    output: Path,
) -> Path:
    """Draw a tracked sequence from its most frontal camera and write ``speed.json``.

    Its keys: ``frames_per_second`` (of the median frame, from numbers on the device to the finished
    image there), ``frames`` measured, ``training_hours`` (null if a benchmark is missing),
    ``steps_per_second`` of the last training (null if its log has no times), ``gaussians`` (null of
    another method than our avatars), ``image_size``, ``hardware``.

    Args:
        method: what draws, see `eavatar.tables.methods`.
        source: the folder of its model, such as ``splat/<variant>``.
        log: ``log.csv`` there.
        tracking: ``face/tracking/<sequence>.npz``.
        cameras: ``capture/cameras.json``.
        benchmarks: Snakemake's of all that trained the model.
        output: ``speed.json``.
    Raises:
        UserError: a file is missing or malformed, or tracking and model do not fit.
    """
    drawing = open_method(method, source, cameras.parent, choose_device())
    if isinstance(drawing, AvatarMethod):
        size = drawing.avatar.settings.head.expression_size
        frame, track = frame_of_avatar(drawing.avatar), read_drive(tracking, size, neutral=False)
        gaussians = len(drawing.avatar.neutral)
    else:
        track = read_tracking(tracking)
        nothing = track.expression[:, :0]
        frame, track = frame_of_method(drawing), replace(track, appearance=nothing, gaze=nothing)
        gaussians = None
    milliseconds = time_frames(frame, track, cameras)
    hours = [_read_hours(path) for path in benchmarks]
    content = {
        "frames_per_second": 1e3 / statistics.median(milliseconds),
        "frames": len(milliseconds),
        "training_hours": sum(hours) if all(hours) else None,
        "steps_per_second": read_rate(log),
        "gaussians": gaussians,
        "image_size": drawing.image_size,
        "hardware": describe_device(frame.device),
    }
    return write_json(output, content)


def read_rate(log: Path) -> float | None:
    """Training steps per second: the median between rows of a log, which neither compilation at the
    start nor a checkpoint in between moves; None of a log of one row, or without times."""
    table = pd.read_csv(require(log, "the training log"))
    if len(table) < 2 or "seconds" not in table:
        return None
    return float(np.median(np.diff(table["step"]) / np.diff(table["seconds"])))


@dataclass(frozen=True)
class Frame:
    """How a method draws one frame.

    Attributes:
        draw: takes what drives the method (E,), pose (6,), intrinsics (1, 3, 3) and world-to-camera
            (1, 4, 4), and returns when the image is done.
        image_size: side, pixels.
        device: where it draws.
    """

    draw: Callable[[Tensor, Tensor, Tensor, Tensor], object]
    image_size: int
    device: torch.device


def frame_of_avatar(avatar: Avatar) -> Frame:
    """Our own, with compiled networks, in one captured graph."""
    return Frame(Player(avatar, compile_networks=True), avatar.settings.image_size, avatar.device)


def frame_of_method(method: Method) -> Frame:
    """Any other method's, as `evaluate` asks for it."""
    device = choose_device()

    def draw(expression: Tensor, pose: Tensor, intrinsics: Tensor, camera: Tensor) -> None:
        nothing = expression[:0]
        driven = expression, nothing, nothing, pose[:3], pose[3:]
        method.render(ViewRequest("", 0, *driven, ("",), intrinsics, camera))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return Frame(draw, method.image_size, device)


def time_frames(frame: Frame, track: Tracking, cameras: Path) -> list[float]:
    """Milliseconds of each frame after a warm-up, the sequence repeated until there are enough."""
    known = read_cameras(cameras)
    side, device = frame.image_size, frame.device
    camera = known[most_frontal(known, track)].resize(side, side)
    view = CameraBatch.of([camera], device)
    expressions, poses = (
        torch.from_numpy(values).to(device) for values in (track.driving, track.poses)
    )
    times: list[float] = []
    while len(times) < WARM_UP + MIN_FRAMES or sum(times) < 1e3 * MIN_SECONDS:
        timestep = len(times) % len(track)
        start = time.perf_counter()
        frame.draw(expressions[timestep], poses[timestep], view.intrinsics, view.world_to_camera)
        times.append(1e3 * (time.perf_counter() - start))
    return times[WARM_UP:]


def _read_hours(path: Path) -> float:
    """Hours of a rule by Snakemake's benchmark; 0 if there is none."""
    if not path.is_file():
        return 0.0
    with path.open(newline="") as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"]) / 3600
