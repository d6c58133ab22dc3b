"""Floors: what shows the training frames themselves, measured on the same images as the avatars.

A method that is no better than these has not learned to draw what it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eavatar.arrays import Bool, Float32
from eavatar.data.frames import FrameSet
from eavatar.data.methods import ViewRequest
from eavatar.device import choose_device
from eavatar.settings import EvaluateSettings
from eavatar.tables.evaluate import (
    Drawing,
    Lpips,
    draw,
    measure_timestep,
    read_truths,
    write_images,
)
from eavatar.transforms import axis_angle_to_matrix

TINY = 1e-12  # in place of no variance
MAX_TIMESTEPS = 500  # that a mean image is of: neighbours in time are alike, and decoding is slow


@dataclass(frozen=True)
class MeanImage:
    """`Method` that shows each camera's mean over its usable training frames.

    Of at most `MAX_TIMESTEPS`, spread evenly over all. A frame is never compared with a mean that
    holds it, where test timesteps are trained on, too (novel views).

    Attributes:
        training: the frames.
        summed: (T,) the timesteps that count.
        sums: (C, H, W, 3) int32, of 8-bit levels over each camera's usable frames of them.
    """

    training: FrameSet
    summed: Bool
    sums: Tensor
    drivable = False

    @property
    def image_size(self) -> int:
        return self.training.width

    @classmethod
    def of(cls, training: FrameSet) -> MeanImage:
        """The means of a training split, summed in integers: no order of sums matters."""
        shape = (len(training.serials), training.width, training.width, 3)
        sums = torch.zeros(shape, dtype=torch.int32, device=training.device)
        count = min(len(training), MAX_TIMESTEPS)
        chosen = np.arange(count) * len(training) // count
        for index in tqdm(chosen.tolist(), desc="mean image", unit="timestep"):
            usable = training.usable_cameras(index)
            images = torch.from_numpy(training.store.read(index, usable)).to(sums.device)
            for camera, image in zip(usable, images, strict=True):
                sums[camera] += image[..., :3]
        return cls(training, np.isin(np.arange(len(training)), chosen), sums)

    def render(self, request: ViewRequest) -> Tensor:
        """Images (K, H, W, 3) in [0, 1]: of each camera the mean of its other frames, or white."""
        others = _others(self.training, request)
        cameras = map(self.training.serials.index, request.serials)
        return torch.stack([self._mean(camera, others) for camera in cameras])

    def _mean(self, camera: int, among: Bool) -> Tensor:
        """(H, W, 3) of a camera's usable frames among some timesteps (T,), white without any."""
        usable = self.training.usable[:, camera] & self.summed
        total, count = self.sums[camera], int((usable & among).sum())
        for index in np.flatnonzero(usable & ~among).tolist():
            pixels = torch.from_numpy(self.training.store.read(index, [camera])[0, ..., :3])
            total = total - pixels.to(total.device)
        return (total.double() / (255 * count)).float() if count else torch.ones_like(total).float()


def _others(training: FrameSet, request: ViewRequest) -> Bool:
    """(T,) which training timesteps are not the one that is asked for."""
    keys = zip(training.sequences, training.timesteps, strict=True)
    return np.array([key != (request.sequence, request.timestep) for key in keys])


@dataclass(frozen=True)
class NearestFrame:
    """`Method` that shows each camera's usable training frame of the nearest expression and pose.

    Near is the sum of the squared distances of expression coefficients, rotation matrices and
    translations, each divided by its variance over the training frames, so that each counts alike.
    A frame is never compared with itself, where test timesteps are trained on, too (novel views).

    Attributes:
        training: the frames.
        states: (T, E + 12) expression, rotation and translation of each timestep, side by side.
        deviations: (E + 12,) what each of their columns is divided by.
    """

    training: FrameSet
    states: Float32
    deviations: Float32
    drivable = False

    @classmethod
    def of(cls, training: FrameSet) -> NearestFrame:
        """Of a training split."""
        states = _states(training.expression, training.rotation, training.translation)
        variances = states.var(axis=0)
        parts = np.split(variances, [len(variances) - 12, len(variances) - 3])
        # Of a part that never changes, all frames are equally far.
        deviations = [np.full(len(part), max(part.sum(), TINY) ** 0.5) for part in parts]
        return cls(training, states, np.concatenate(deviations).astype(np.float32))

    @property
    def image_size(self) -> int:
        return self.training.width

    def render(self, request: ViewRequest) -> Tensor:
        """Images (K, H, W, 3) in [0, 1]: for each camera its own nearest frame, or white."""
        given = (request.expression, request.rotation, request.translation)
        wanted = _states(*(values[None] for values in given))
        distances = (((self.states - wanted) / self.deviations) ** 2).sum(axis=1)
        cameras = [self.training.serials.index(serial) for serial in request.serials]
        shown = self.training.usable[:, cameras] & _others(self.training, request)[:, None]
        nearest = np.where(shown, distances[:, None], np.inf).argmin(axis=0).tolist()
        images = [
            self.training.views(timestep, [camera]).images
            for timestep, camera in zip(nearest, cameras, strict=True)
        ]
        found = torch.from_numpy(shown.any(axis=0)).to(images[0].device)
        return torch.where(found[:, None, None, None], torch.cat(images), 1.0)


def _states(expression: Tensor, rotation: Tensor, translation: Tensor) -> Float32:
    """(T, E + 12) of (T, E), axis-angle (T, 3) and (T, 3): matrices have no jump at half a turn."""
    matrices = axis_angle_to_matrix(rotation).flatten(1)
    states: Float32 = torch.cat([expression, matrices, translation], dim=1).cpu().numpy()
    return states


def floors(
    settings: EvaluateSettings, image_size: int, capture: Path, face: Path, output: Path
) -> Path:
    """Measure both floors on the test split, in all cameras.

    Writes a table as ``images.csv`` of `evaluate`, with the protocols ``mean_image`` and
    ``nearest_training_frame``.

    Args:
        settings: of `evaluate`.
        image_size: side of the images, pixels.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        output: ``results/<subject>/tables/floors.csv``.
    Returns:
        ``output``.
    Raises:
        UserError: a contract file is missing or malformed, or a split has no usable frame.
    """
    device = choose_device()
    lpips = Lpips.load(settings, device)
    training, frames = (
        FrameSet.read(capture, face, split, image_size).to(device) for split in ("train", "test")
    )
    drawings = {
        "mean_image": Drawing(MeanImage.of(training)),
        "nearest_training_frame": Drawing(NearestFrame.of(training)),
    }
    rows = []
    for index, truth in enumerate(read_truths(frames, "floors")):
        images = draw(drawings, frames, index, truth)
        rows.append(measure_timestep(images, frames, index, truth, lpips))
    write_images(output, rows)
    return output
