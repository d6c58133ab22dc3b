"""Draw the held-out timesteps with a method, and measure every image.

Self-reenactment: a method that was trained on a subject, driven by the tracked expression and pose
of sequences it was not trained on, against what the cameras recorded, for all cameras. A second
protocol draws the same poses with the expression frozen at neutral: the difference is what the
expression adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from eavatar.data.frames import FrameSet
from eavatar.data.methods import Method, ViewRequest
from eavatar.device import choose_device
from eavatar.settings import EvaluateSettings
from eavatar.tables.drawing import compare, order_along_arc, write_image
from eavatar.tables.methods import open_method
from eavatar.tables.metrics import psnr, ssim, whiten_padding
from eavatar.tables.table import write_table
from eavatar.training.perceptual import Perceptual, load_perceptual

RECORDED = "self_reenactment"
EXPRESSION_FACTORS = {RECORDED: 1.0, "neutral_expression": 0.0}


@dataclass(frozen=True)
class Truth:
    """What the usable cameras recorded at a timestep.

    Attributes:
        cameras: K indices into those of the frames.
        images: (K, H, W, 3) in [0, 1], on white, the padding white too.
        visible: (K, H, W) 1 inside the sensor, 0 in the padding of the crop.
    """

    cameras: list[int]
    images: Tensor
    visible: Tensor

    @classmethod
    def read(cls, frames: FrameSet, index: int) -> Truth:
        cameras = frames.usable_cameras(index)
        views = frames.views(index, cameras)
        return cls(cameras, whiten_padding(views.images, views.visible), views.visible)


def evaluate(
    settings: EvaluateSettings,
    method: str,
    source: Path,
    capture: Path,
    face: Path,
    output: Path,
    held_out: Sequence[str] = (),
) -> Path:
    """Measure a method on the test split: the whole head with shoulders, on white, all cameras.

    Writes ``output/images.csv``, a row per protocol, timestep and camera in that order: protocol,
    sequence, timestep, camera, psnr_db, ssim, lpips (empty without LPIPS' weights); and
    ``output/pictures/<sequence>_<timestep>_<camera>.png``: truth, render and error side by side.
    Images have the method's size. The render is never masked by the truth's mask, which would hide
    what is drawn outside it. Views whose mask has failed are left out.

    Args:
        settings: of the rule.
        method: its name, see `eavatar.tables.methods`.
        source: what the method draws from: ``results/<subject>/splat/<variant>`` for an avatar,
            for images see `eavatar.tables.image_folder`.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        output: ``results/<subject>/tables/<variant>``.
        held_out: cameras that alone are measured, as of `eavatar.data.camera_split`; none for all.
    Returns:
        ``output``.
    Raises:
        UserError: the source or a contract file is missing or not of its form.
    """
    device = choose_device()
    perceptual = load_perceptual(settings.lpips_net, device, settings.lpips_required)
    drawing = open_method(method, source, capture, device)
    frames = FrameSet.read(capture, face, "test", drawing.image_size, held_out=held_out).to(device)
    shown = choose_views(frames, settings.pictures)
    folder = output / "pictures"
    for stale in folder.glob("*.png"):
        stale.unlink()
    rows: dict[str, list[pd.DataFrame]] = {protocol: [] for protocol in EXPRESSION_FACTORS}
    for index in tqdm(range(len(frames)), desc="evaluate", unit="timestep"):
        truth = Truth.read(frames, index)
        for protocol, images in predict(drawing, frames, index, truth):
            keys = {
                "protocol": protocol,
                "sequence": frames.sequences[index],
                "timestep": frames.timesteps[index],
                "camera": [frames.serials[camera] for camera in truth.cameras],
            }
            measured = measure(images, truth, perceptual)
            rows[protocol].append(pd.DataFrame({**keys, **measured}))
            if protocol == RECORDED:
                _write_pictures(folder, frames, index, shown.get(index, []), truth, images)
    table = pd.concat([part for parts in rows.values() for part in parts])
    write_table(output / "images.csv", table)
    return output


def predict(
    method: Method, frames: FrameSet, index: int, truth: Truth
) -> Iterator[tuple[str, Tensor]]:
    """What a method draws of a timestep in the cameras of the truth, the padding white.

    Yields:
        protocol and images (K, H, W, 3); only self-reenactment if the method is not drivable.
    """
    for protocol, factor in EXPRESSION_FACTORS.items():
        if protocol == RECORDED or method.drivable:
            images = method.render(_request(frames, index, truth.cameras, factor))
            yield protocol, whiten_padding(images, truth.visible)


def measure(
    images: Tensor, truth: Truth, perceptual: Perceptual | None
) -> dict[str, NDArray[np.floating]]:
    """The metrics of K images against the truth: psnr_db, ssim, lpips, each (K,).

    Args:
        images: (K, H, W, 3) in [0, 1], the padding white.
        truth: what the same cameras recorded.
        perceptual: None makes LPIPS NaN.
    """
    arrays = [tensor.cpu().numpy() for tensor in (images, truth.images, truth.visible)]
    lpips = np.full(len(images), np.nan)
    if perceptual:
        with torch.no_grad():
            lpips = perceptual(images, truth.images).cpu().numpy()
    return {"psnr_db": psnr(*arrays), "ssim": ssim(*arrays), "lpips": lpips}


def choose_views(frames: FrameSet, count: int) -> dict[int, list[int]]:
    """Which cameras are shown of which timesteps: strong expressions, spread over time and view.

    The timesteps are cut into as many runs as views are wanted, and each run gives the one whose
    expression coefficients have the largest norm. The strongest of them is seen from the middle of
    the arc around the head, the next from half-way to its sides, and so on.

    Args:
        frames: the test split.
        count: views wanted; fewer come where two would be the same.
    """
    centres = np.linalg.inv(frames.world_to_camera.cpu().numpy())[:, :3, 3]
    strength = frames.expression.norm(dim=1).cpu().numpy()
    runs = np.array_split(np.arange(len(frames)), min(count, len(frames)))
    strongest = [int(run[strength[run].argmax()]) for run in runs]
    strongest.sort(key=lambda index: -strength[index])
    chosen: dict[int, list[int]] = {}
    for number in range(count):
        index = strongest[number % len(strongest)]
        rotation, translation = frames.rotation[index].cpu(), frames.translation[index].cpu()
        order = order_along_arc(centres, rotation.numpy(), translation.numpy())
        arc = [camera for camera in order if frames.usable[index, camera]]
        camera = arc[int(_radical_inverse(number + 1) * len(arc))]
        if camera not in chosen.setdefault(index, []):
            chosen[index].append(camera)
    return chosen


def _request(frames: FrameSet, index: int, cameras: list[int], factor: float) -> ViewRequest:
    return ViewRequest(
        sequence=frames.sequences[index],
        timestep=frames.timesteps[index],
        expression=factor * frames.expression[index],
        rotation=frames.rotation[index],
        translation=frames.translation[index],
        serials=tuple(frames.serials[camera] for camera in cameras),
        intrinsics=frames.intrinsics[cameras],
        world_to_camera=frames.world_to_camera[cameras],
    )


def _write_pictures(
    folder: Path,
    frames: FrameSet,
    index: int,
    cameras: list[int],
    truth: Truth,
    images: Tensor,
) -> None:
    """Write truth, render and error of some of a timestep's cameras."""
    for camera in cameras:
        place = truth.cameras.index(camera)
        strip = compare(truth.images[place].cpu().numpy(), images[place].cpu().numpy())
        name = f"{frames.sequences[index]}_{frames.timesteps[index]:05d}_{frames.serials[camera]}"
        write_image(folder / f"{name}.png", strip)


def _radical_inverse(number: int) -> float:
    """The binary digits behind the point, mirrored: 1/2, 1/4, 3/4, 1/8, … fill (0, 1) evenly."""
    value, weight = 0.0, 0.5
    while number:
        value += weight * (number & 1)
        number, weight = number >> 1, weight / 2
    return value
