"""Batches of training images, selected at random and prepared ahead by threads."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from eavatar.arrays import Bool, Uint8
from eavatar.data.frames import FrameSet
from eavatar.errors import UserError
from eavatar.threads import count_threads, make_pool

logger = logging.getLogger(__name__)

MAX_PREFETCH = 2**30  # bytes of the pixels of coming steps


@dataclass(frozen=True)
class Selection:
    """What a step sees: B timesteps, each in K cameras.

    Attributes:
        timesteps: B indices into the timesteps.
        cameras: B × K indices into the cameras.
    """

    timesteps: tuple[int, ...]
    cameras: tuple[tuple[int, ...], ...]


def select(seed: int, step: int, usable: Bool, timesteps: int, views: int) -> Selection:
    """Timesteps and usable cameras at random, from the seed, the step and what is usable.

    Args:
        seed: of the training.
        step: of the training.
        usable: (T, C) of T timesteps and C cameras; every timestep has one.
        timesteps: how many; all different as far as there are enough, repeated beyond.
        views: likewise, of each timestep's usable cameras; never more than there are cameras.
    """
    random = np.random.default_rng([seed, step])
    total, cameras = usable.shape
    chosen = random.choice(total, timesteps, replace=timesteps > total)
    views = min(views, cameras)

    def select_cameras(timestep: int) -> tuple[int, ...]:
        able = np.flatnonzero(usable[timestep])
        different = random.choice(able, min(views, len(able)), replace=False)
        return tuple(np.resize(different, views).tolist())

    return Selection(tuple(chosen.tolist()), tuple(map(select_cameras, chosen)))


@dataclass(frozen=True)
class Batch:
    """The pixels of a step, on the training device.

    Attributes:
        timesteps: (B,) int64 indices into the timesteps.
        cameras: (B, K) int64 indices into the cameras.
        pixels: (B, K, H, W, 4) uint8: colour on white, and mask.
    """

    timesteps: Tensor
    cameras: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Pending:
    """A step in preparation.

    Attributes:
        selection: what it sees.
        host: what the threads fill: pixels (B, K, H, W, 4) uint8, or masks (B, K, H, W) alone where
            the GPU decodes the colours.
        views: B · K of them; each gives the JPEG in the latter case.
    """

    selection: Selection
    host: Tensor
    views: tuple[Future[Any], ...]


class Loader:
    """Batches of training images, those of the next steps prepared by threads meanwhile.

    On CUDA they are uploaded on a stream of their own. The threads never call CUDA, and `batch`
    does so only in the thread that calls it, so a graph may be captured between two calls.

    Args:
        frames: where the images come from; their tracking says on which device they are wanted.
        seed: of the selections.
        timesteps: per step.
        views: per timestep; fewer where there are fewer cameras.
        gpu_decoding: decode JPEGs on the GPU where that works and pixels are not kept in memory.
        part: which of how many equal parts of each timestep's views is wanted.

    Raises:
        UserError: the views cannot be divided so.
    """

    def __init__(
        self,
        frames: FrameSet,
        seed: int,
        timesteps: int,
        views: int,
        gpu_decoding: bool = True,
        part: tuple[int, int] = (0, 1),
    ):
        self.frames, self.seed, self.timesteps, self.views = frames, seed, timesteps, views
        self.part = part
        self.device = frames.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.gpu_decoding = gpu_decoding and frames.store.keeps_files and nvjpeg_works(self.device)
        self.backgrounds = self._backgrounds() if self.gpu_decoding else []
        count = min(views, len(frames.serials))
        if count % part[1]:
            raise UserError(
                f"the {count} views of a step cannot be split over {part[1]} processes; set "
                "splat.views_per_step to a multiple, of no more than there are cameras."
            )
        shape = (timesteps, count // part[1], frames.height, frames.width)
        self.shape = shape if self.gpu_decoding else (*shape, 4)
        threads = count_threads()
        affordable = max(1, MAX_PREFETCH // math.prod(self.shape))
        self.ahead = min(max(2, math.ceil(2 * threads / math.prod(shape[:2]))), affordable)
        self.pending: dict[int, Pending] = {}
        self.pool = make_pool()
        logger.info(
            "loader: %d threads, %d steps ahead, JPEGs decoded on the %s",
            threads, self.ahead, "GPU" if self.gpu_decoding else "CPU",
        )  # fmt: skip

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same whatever was asked for before.

        Raises:
            UserError: an image is missing or damaged.
        """
        wanted = range(step, step + self.ahead + 1)
        for stale in self.pending.keys() - wanted:
            for view in self.pending.pop(stale).views:
                view.cancel()
        for coming in wanted:
            if coming not in self.pending:
                self.pending[coming] = self._prepare(coming)
        ready = self.pending.pop(step)
        results = [view.result() for view in ready.views]
        if self.stream is None:
            return Batch(
                torch.tensor(ready.selection.timesteps),
                torch.tensor(ready.selection.cameras),
                ready.host,
            )
        return self._upload(ready, results, self.stream)

    def describe(self, step: int) -> str:
        """The frames that a step sees, for a reader: sequence, timestep and cameras."""
        chosen, frames = self.select(step), self.frames
        return "; ".join(
            f"{frames.sequences[timestep]} timestep {frames.timesteps[timestep]} in "
            + ", ".join(frames.serials[camera] for camera in cameras)
            for timestep, cameras in zip(chosen.timesteps, chosen.cameras, strict=True)
        )

    def _backgrounds(self) -> list[Tensor | None]:
        """What the store takes out of each camera's colours, (3, S, S) uint8 on the GPU."""
        return [
            None if image is None else torch.from_numpy(image).to(self.device).permute(2, 0, 1)
            for image in self.frames.store.backgrounds
        ]

    def select(self, step: int) -> Selection:
        """What a step sees, in all parts."""
        return select(self.seed, step, self.frames.usable, self.timesteps, self.views)

    def _select_part(self, step: int) -> Selection:
        whole, (number, count) = self.select(step), self.part
        return Selection(whole.timesteps, tuple(views[number::count] for views in whole.cameras))

    def _prepare(self, step: int) -> Pending:
        """Hand the views of a step to the threads."""
        store = self.frames.store
        chosen = self._select_part(step)
        host = torch.empty(self.shape, dtype=torch.uint8, pin_memory=self.stream is not None)
        fill = store.fill_mask if self.gpu_decoding else store.fill
        views = tuple(
            self.pool.submit(fill, timestep, camera, image)
            for timestep, cameras, images in zip(
                chosen.timesteps, chosen.cameras, host.numpy(), strict=True
            )
            for camera, image in zip(cameras, images, strict=True)
        )
        return Pending(chosen, host, views)

    def _upload(self, ready: Pending, results: Sequence[Any], stream: torch.cuda.Stream) -> Batch:
        """The batch on the GPU; the caller's stream waits for it.

        Torch's allocators keep what is pinned until it is copied and, being told of the caller's
        stream, the batch until that has read it.
        """

        def send(pinned: Tensor) -> Tensor:
            return pinned.to(self.device, non_blocking=True)

        with torch.cuda.stream(stream):
            timesteps = send(torch.tensor(ready.selection.timesteps).pin_memory())
            cameras = send(torch.tensor(ready.selection.cameras).pin_memory())
            host = send(ready.host)
            if self.gpu_decoding:
                pixels = self._decode(results, host, ready.selection, stream)
            else:
                pixels = host
        batch = Batch(timesteps, cameras, pixels)
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_stream(stream)
        for tensor in (batch.timesteps, batch.cameras, batch.pixels):
            tensor.record_stream(consumer)
        return batch

    def _decode(
        self, jpegs: Sequence[Uint8], masks: Tensor, chosen: Selection, stream: torch.cuda.Stream
    ) -> Tensor:
        """(B, K, H, W, 4) uint8 on the GPU from JPEGs and masks (B, K, H, W)."""
        # Torchvision decodes on a stream of its own, which does not wait for this one to have done
        # with the memory that the colours go to. It synchronises the host with the decoding.
        stream.synchronize()
        colours = decode_by_nvjpeg(jpegs, self.device)
        pixels = masks.new_empty((*masks.shape, 4))
        cameras = [camera for row in chosen.cameras for camera in row]
        backgrounds = self.backgrounds
        # One at a time: as floats they take four times the memory.
        views = zip(pixels.flatten(0, 1), colours, masks.flatten(0, 1), cameras, strict=True)
        for image, colour, mask, camera in views:
            rows, columns = self.frames.store.boxes.window(camera)
            opacity = mask.float() / 255
            darkness = 255.0 - colour[:, rows, columns]
            behind = backgrounds[camera]
            through = darkness if behind is None else 255.0 - behind[:, rows, columns]
            person = (darkness - (1 - opacity) * through).clamp(min=0).minimum(255 * opacity)
            image[..., :3] = (255 - person.round()).permute(1, 2, 0)
            image[..., 3] = mask
        return pixels

    def close(self) -> None:
        """Stop the threads; what they prepared is lost."""
        self.pool.shutdown(cancel_futures=True)
        self.pending.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def nvjpeg_works(device: torch.device) -> bool:
    """Whether torchvision can decode JPEGs on a device, found out by doing so."""
    if device.type != "cuda":
        return False
    _, jpeg = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))
    try:
        decode_by_nvjpeg([jpeg], device)
    except (ImportError, RuntimeError) as error:
        logger.info("torchvision decodes no JPEGs on the GPU here: %s", error)
        return False
    return True


def decode_by_nvjpeg(jpegs: Sequence[Uint8], device: torch.device) -> list[Tensor]:
    """JPEGs as bytes to (3, H, W) RGB uint8 each, on a GPU, synchronising the host.

    Raises:
        RuntimeError: torchvision has no nvJPEG, or it cannot decode one of them.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.from_numpy(jpeg) for jpeg in jpegs]
    images: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return images
