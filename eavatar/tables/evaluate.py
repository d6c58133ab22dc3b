"""Draw the held-out timesteps with a method, and measure every image.

Self-reenactment: a method that was trained on a subject, driven by the tracked expression and pose
of sequences it was not trained on, against what the cameras recorded, for all cameras. A second
protocol draws the same poses with the expression frozen at neutral: the difference is what the
expression adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from eavatar.arrays import Float32
from eavatar.cameras import Camera
from eavatar.data.frames import FrameSet, Views
from eavatar.data.methods import Method, ViewRequest
from eavatar.device import choose_device
from eavatar.settings import EvaluateSettings
from eavatar.tables.drawing import compare, order_along_arc, write_image
from eavatar.tables.layout import RECORDED
from eavatar.tables.methods import open_method
from eavatar.tables.metrics import (
    GAUSSIAN,
    UNIFORM,
    psnr,
    similarity,
    squared_error,
    ssim,
    whiten_padding,
)
from eavatar.tables.regions import PERSON, Head, Regions, find_regions, measure_regions
from eavatar.tables.table import COLUMNS, KEYS, write_table
from eavatar.threads import make_pool
from eavatar.training.perceptual import Perceptual, load_perceptual
from eavatar.weights import Net

NEUTRAL = "neutral_expression"


@dataclass(frozen=True)
class Drawing:
    """How the images of a protocol are drawn.

    Attributes:
        method: what draws them.
        expression: factor of the tracked expression; other than 1 only if the method is drivable.
    """

    method: Method
    expression: float = 1.0


@dataclass(frozen=True)
class Truth:
    """What the usable cameras recorded at a timestep.

    Attributes:
        cameras: K indices into those of the frames.
        images: (K, H, W, 3) in [0, 1], on white, the padding white too.
        with_set: (K, H, W, 3) the same with the set left in where a mask is soft.
        visible: (K, H, W) 1 inside the sensor, 0 in the padding of the crop.
        masks: (K, H, W) in [0, 1].
        regions: K of them.
    """

    cameras: list[int]
    images: Tensor
    with_set: Tensor
    visible: Tensor
    masks: Tensor
    regions: list[Regions]

    @classmethod
    def read(cls, frames: FrameSet, index: int) -> Truth:
        cameras = frames.usable_cameras(index)
        views = frames.views(index, cameras)
        images = whiten_padding(views.images, views.visible)
        with_set = whiten_padding(frames.images_with_set(index, cameras), views.visible)
        regions = _find_regions(frames, index, cameras, views)
        return cls(cameras, images, with_set, views.visible, views.masks, regions)


@dataclass(frozen=True)
class Lpips:
    """LPIPS with each backbone whose weights are there.

    Attributes:
        nets: None for a backbone without weights.
        chosen: the backbone of the column ``lpips``.
    """

    nets: dict[Net, Perceptual | None]
    chosen: Net

    @classmethod
    def load(cls, settings: EvaluateSettings, device: torch.device) -> Lpips:
        """Raises `UserError` if the chosen one is required and cannot be had."""
        chosen = settings.lpips_net
        nets: dict[Net, Perceptual | None] = {
            net: load_perceptual(net, device, settings.lpips_required and net == chosen)
            for net in get_args(Net)
        }
        return cls(nets, chosen)

    @torch.no_grad()
    def measure(self, images: Tensor, truths: Tensor) -> pd.DataFrame:
        """Columns of distances of K images (K, H, W, 3); NaN without weights."""
        distances = {
            f"lpips_{net}": net_lpips(images, truths).cpu().numpy() if net_lpips else np.nan
            for net, net_lpips in self.nets.items()
        }
        table = pd.DataFrame(distances, index=range(len(images)))
        return table.assign(lpips=table[f"lpips_{self.chosen}"])


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

    Writes ``output/images.csv``, a row per protocol, timestep and camera in that order, with the
    columns `eavatar.tables.table.KEYS` and `COLUMNS` (those of LPIPS are empty without its weights,
    those of a region where it is not seen); and
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
    lpips = Lpips.load(settings, device)
    drawing = open_method(method, source, capture, device, held_out)
    frames = FrameSet.read(capture, face, "test", drawing.image_size, held_out=held_out).to(device)
    shown = choose_views(frames, settings.pictures)
    folder = output / "pictures"
    for stale in folder.glob("*.png"):
        stale.unlink()
    drawings = {RECORDED: Drawing(drawing)}
    if drawing.drivable:
        drawings[NEUTRAL] = Drawing(drawing, expression=0.0)
    rows = []
    for index, truth in enumerate(read_truths(frames, "evaluate")):
        images = draw(drawings, frames, index, truth)
        rows.append(measure_timestep(images, frames, index, truth, lpips))
        _write_pictures(folder, frames, index, shown.get(index, []), truth, images[RECORDED])
    write_images(output / "images.csv", rows)
    return output


def read_truths(frames: FrameSet, description: str) -> Iterator[Truth]:
    """What was recorded at all timesteps, in order, with a progress bar.

    While one is worked on, a thread reads the next: files, decoding and regions want the cores,
    most of the rest the GPU.
    """
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(Truth.read, frames, 0)
        for index in tqdm(range(len(frames)), desc=description, unit="timestep"):
            truth = coming.result()
            if index + 1 < len(frames):
                coming = reader.submit(Truth.read, frames, index + 1)
            yield truth


def draw(
    drawings: Mapping[str, Drawing], frames: FrameSet, index: int, truth: Truth
) -> dict[str, Tensor]:
    """Images (K, H, W, 3) of a timestep by protocol, in the cameras of the truth, padding white."""
    return {
        protocol: whiten_padding(
            drawing.method.render(_request(frames, index, truth.cameras, drawing.expression)),
            truth.visible,
        )
        for protocol, drawing in drawings.items()
    }


def measure_timestep(
    images: Mapping[str, Tensor], frames: FrameSet, index: int, truth: Truth, lpips: Lpips
) -> pd.DataFrame:
    """The rows of ``images.csv`` of a timestep; arguments as of `draw` and what it returns."""
    parts = [
        measure(drawn, truth, lpips).assign(
            protocol=protocol,
            sequence=frames.sequences[index],
            timestep=frames.timesteps[index],
            camera=[frames.serials[camera] for camera in truth.cameras],
        )
        for protocol, drawn in images.items()
    ]
    return pd.concat(parts)[[*KEYS, *COLUMNS]]


def measure(images: Tensor, truth: Truth, lpips: Lpips) -> pd.DataFrame:
    """A column for each metric of K images against the truth.

    Args:
        images: (K, H, W, 3) in [0, 1], the padding white.
        truth: what the same cameras recorded.
        lpips: the backbones to measure with.
    """
    tensors = (images, truth.images, truth.with_set, truth.visible, truth.masks)
    if images.is_cuda:  # one after the other: side by side they would only take more memory
        rows = list(map(_measure_image, *tensors, truth.regions))
    else:
        with make_pool() as pool:
            rows = list(pool.map(_measure_image, *tensors, truth.regions))
    values = torch.stack([torch.stack(list(row.values())) for row in rows])  # one transfer for all
    table = pd.DataFrame(values.cpu().numpy(), columns=list(rows[0]))
    return table.join(lpips.measure(images, truth.images))


def write_images(path: Path, timesteps: Sequence[pd.DataFrame]) -> None:
    """Write ``images.csv``, the rows of a protocol together."""
    table = pd.concat(timesteps)
    order = {name: number for number, name in enumerate(table["protocol"].unique())}
    by_protocol = table.sort_values("protocol", key=lambda names: names.map(order), kind="stable")
    write_table(path, by_protocol)


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
    strongest = strongest_of_runs(strength, count)
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


def strongest_of_runs(strength: Float32, count: int) -> list[int]:
    """The index of the largest of T values in each of some runs of equal length, at most T."""
    runs = np.array_split(np.arange(len(strength)), min(count, len(strength)))
    return [int(run[strength[run].argmax()]) for run in runs]


def _measure_image(
    render: Tensor,
    truth: Tensor,
    with_set: Tensor,
    visible: Tensor,
    mask: Tensor,
    regions: Regions,
) -> dict[str, Tensor]:
    """The metrics of an image by column, () float64 each, without LPIPS."""
    inside = visible > 0
    person = inside & (mask >= PERSON)
    error, error_with_set = squared_error(render, truth), squared_error(render, with_set)
    similarities = similarity(render, truth, GAUSSIAN)
    found = {
        "psnr_db": psnr(error, inside),
        "ssim": ssim(similarities, inside),
        "ssim_uniform": ssim(similarity(render, truth, UNIFORM), inside),
        "psnr_masked": psnr(error, person),
        "ssim_masked": ssim(similarities, person),
        "psnr_with_set": psnr(error_with_set, inside),
        "ssim_with_set": ssim(similarity(render, with_set, GAUSSIAN), inside),
    }
    regional = measure_regions(error, regions)
    return found | {f"psnr_{name}": value for name, value in regional.items()}


def _find_regions(frames: FrameSet, index: int, cameras: list[int], views: Views) -> list[Regions]:
    rotation = Rotation.from_rotvec(frames.rotation[index].cpu().numpy()).as_matrix()
    head = Head(frames.landmarks[index].cpu().numpy().astype(np.float64), rotation)
    masks, visible = (views.masks >= PERSON).cpu().numpy(), (views.visible > 0).cpu().numpy()

    intrinsics, extrinsics = (
        matrices[cameras].cpu().numpy().astype(np.float64)
        for matrices in (frames.intrinsics, frames.world_to_camera)
    )

    def find(place: int) -> Regions:
        camera = Camera(intrinsics[place], extrinsics[place], frames.width, frames.height)
        return find_regions(head, camera, masks[place], visible[place])

    with make_pool() as pool:
        return list(pool.map(find, range(len(cameras))))


def _request(frames: FrameSet, index: int, cameras: list[int], factor: float) -> ViewRequest:
    """A timestep; the appearance that was measured belongs to the expression that was."""
    request = ViewRequest.of(frames, index, cameras)
    if factor == 1:
        return request
    expression = factor * request.expression
    return replace(request, expression=expression, appearance=request.appearance[:0])


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
