"""The ingested frames, masks and tracking of a subject, as training and tables use them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from os import sched_getaffinity
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from eavatar.errors import UserError
from eavatar.images import Boxes, ImageStore, make_pool, read_grey, resize_area
from eavatar.io import Identity, Tracking, read_arrays, read_cameras, require

Array = NDArray[Any]

logger = logging.getLogger(__name__)

GIB = 2**30
PREFETCH_BYTES = GIB  # most pixels of coming steps
MARGIN = 0.02  # of the image around the masks, for soft edges and what moves beyond them
BOX = ["left", "top", "right", "bottom"]


@dataclass(frozen=True)
class Views:
    """Several cameras of one timestep.

    Attributes:
        images: (K, H, W, 3) in [0, 1], composited on white by the mask.
        masks: (K, H, W) alpha in [0, 1].
        visible: (K, H, W) 1 inside the sensor, 0 in the padding of the crop.
    """

    images: Tensor
    masks: Tensor
    visible: Tensor


@dataclass(frozen=True)
class FrameSet:
    """All timesteps of some sequences on one axis of F frames, for C cameras.

    Attributes:
        sequences: F names; timesteps: F indices within the sequence.
        expression: (F, E); rotation: (F, 3) axis-angle; translation: (F, 3) metres.
        landmarks: (F, 68, 3) world, metres.
        scale: canonical units to metres.
        neutral_landmarks: (68, 3) canonical.
        serials: C camera serial numbers.
        intrinsics: (C, 3, 3) pixels of the images held here; world_to_camera: (C, 4, 4).
        visible: (C, H, W) 1 inside the sensor, 0 in the padding of the crop.
        usable: (F, C) bool, on the host: whether the mask of a view has not failed; each frame has
            a usable view.
        store: the images.
    """

    sequences: tuple[str, ...]
    timesteps: tuple[int, ...]
    expression: Tensor
    rotation: Tensor
    translation: Tensor
    landmarks: Tensor
    scale: float
    neutral_landmarks: Tensor
    serials: tuple[str, ...]
    intrinsics: Tensor
    world_to_camera: Tensor
    visible: Tensor
    usable: NDArray[np.bool_]
    store: ImageStore

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def height(self) -> int:
        return self.store.boxes.height

    @property
    def width(self) -> int:
        return self.store.boxes.width

    def views(self, frame: int, cameras: Sequence[int]) -> Views:
        """The views of one frame, on the device of the tracking."""
        chosen = list(cameras)
        packed = torch.from_numpy(self.store.read(frame, chosen)).to(self.expression.device)
        return Views(*unpack(packed), self.visible[chosen])

    def usable_cameras(self, frame: int) -> list[int]:
        """The cameras whose view of a frame is usable, at least one."""
        return np.flatnonzero(self.usable[frame]).tolist()

    def boxed(self, multiple: int) -> FrameSet:
        """The same frames, cropped in each camera to a box around the person in all of them.

        The boxes have one size: what the largest needs with a margin, rounded up to a multiple, at
        most the image. Intrinsics are shifted to match.

        Args:
            multiple: of pixels.
        Raises:
            UserError: the masks' index has no boxes.
        """
        boxes = find_boxes(self.store, multiple)
        intrinsics = self.intrinsics.clone()
        intrinsics[:, :2, 2] -= torch.tensor(boxes.corners, device=intrinsics.device)
        visible = [image[boxes.window(camera)] for camera, image in enumerate(self.visible)]
        return replace(
            self,
            intrinsics=intrinsics,
            visible=torch.stack(visible),
            store=self.store.cropped(boxes),
        )

    def to(self, device: torch.device) -> FrameSet:
        """The same frames with tracking and cameras on a device; images follow when drawn."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    @classmethod
    def read(
        cls, capture: Path, face: Path, split: str, image_size: int, memory_gb: float = 4
    ) -> FrameSet:
        """Read a split's frames at a size (area averaging), with the tracking of their sequences.

        Frames whose masks have failed in all cameras are left out.

        Args:
            capture: ``results/<subject>/capture``; face: ``results/<subject>/face``.
            split: ``train`` or ``test``.
            image_size: side of the square images, pixels; at most the ingested size.
            memory_gb: host memory for images, 2^30 bytes.
        Raises:
            UserError: a contract file is missing or malformed, or the split has no usable frame.
        """
        cameras = read_cameras(capture / "cameras.json")
        ingested = next(iter(cameras.values())).width
        if image_size > ingested:
            raise UserError(
                f"image_size {image_size} is larger than the ingested frames ({ingested} pixels); "
                "lower it or raise capture.ingest.image_size."
            )
        keys, usable = read_usable(capture, split, tuple(cameras))
        identity = read_arrays(Identity, face / "identity.npz")
        names = {name for name, _ in keys}
        tracks = {n: read_arrays(Tracking, face / "tracking" / f"{n}.npz") for n in names}
        resized = [camera.resize(image_size, image_size) for camera in cameras.values()]
        visible = [read_grey(capture / "visible" / f"{serial}.png") for serial in cameras]
        whole = Boxes(((0, 0),) * len(cameras), image_size, image_size)

        def gather(field: str) -> Tensor:
            rows = [getattr(tracks[sequence], field)[timestep] for sequence, timestep in keys]
            return torch.from_numpy(np.stack(rows))

        def stack(arrays: Sequence[Array]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).float()

        return cls(
            sequences=tuple(sequence for sequence, _ in keys),
            timesteps=tuple(timestep for _, timestep in keys),
            expression=gather("expression"),
            rotation=gather("rotation"),
            translation=gather("translation"),
            landmarks=gather("landmarks"),
            scale=float(identity.scale),
            neutral_landmarks=torch.from_numpy(identity.landmarks),
            serials=tuple(cameras),
            intrinsics=stack([camera.intrinsics for camera in resized]),
            world_to_camera=stack([camera.world_to_camera for camera in resized]),
            visible=(stack([resize_area(mask, image_size) for mask in visible]) >= 255).float(),
            usable=usable,
            store=ImageStore(
                capture, keys, tuple(cameras), ingested, image_size, whole, int(memory_gb * GIB)
            ),
        )


def read_index(capture: Path, split: str) -> pd.DataFrame:
    """The rows of all ``capture/<sequence>.csv`` in a split, with a column ``sequence``."""
    paths = sorted(require(capture, "the capture folder").glob("*.csv"))
    tables = [pd.read_csv(path, dtype={"camera": str}).assign(sequence=path.stem) for path in paths]
    rows = [table[table["split"] == split] for table in tables]
    index = pd.concat(rows) if rows else pd.DataFrame()
    if index.empty:
        raise UserError(f"{capture} has no frame in the split '{split}'; check capture.ingest.")
    return index


def read_usable(
    capture: Path, split: str, serials: Sequence[str]
) -> tuple[list[tuple[str, int]], NDArray[np.bool_]]:
    """The (sequence, timestep) of a split's F frames, and which of C cameras are usable (F, C).

    Left out are frames without any usable view.
    """
    index = read_index(capture, split)
    masks = pd.concat([read_masks(capture, name) for name in sorted(set(index["sequence"]))])
    views = index.merge(masks, on=["sequence", "timestep", "camera"])
    good = views[views["failed"] == 0].pivot_table(
        index=["sequence", "timestep"], columns="camera", values="failed", aggfunc="size"
    )
    usable = good.reindex(columns=list(serials)).notna()
    usable = usable[usable.any(axis=1)].sort_index()
    if usable.empty:
        raise UserError(
            f"all masks of the split '{split}' in {capture / 'masks'} have failed; look at them "
            "and check capture.matte."
        )
    return [(str(name), int(timestep)) for name, timestep in usable.index], usable.to_numpy()


def read_masks(capture: Path, sequence: str) -> pd.DataFrame:
    """The index of a sequence's masks, with a column ``sequence``."""
    path = require(capture / "masks" / f"{sequence}.csv", "the index of the masks")
    table = pd.read_csv(path, dtype={"camera": str}).assign(sequence=sequence)
    if not {*BOX, "failed"} <= set(table):
        raise UserError(f"{path} was written by an earlier version; run `matte` again.")
    return table


def find_boxes(store: ImageStore, multiple: int) -> Boxes:
    """The boxes of `FrameSet.boxed`."""
    keys, size = store.keys, store.size
    wanted = pd.DataFrame(keys, columns=["sequence", "timestep"])
    tables = [read_masks(store.capture, name) for name in sorted({name for name, _ in keys})]
    rows = pd.concat(tables).merge(wanted, on=["sequence", "timestep"])
    seen = (rows["right"] > rows["left"]) & (rows["failed"] == 0)
    cameras = rows[seen].groupby("camera")
    # A camera that never sees the person gets the middle of the image.
    corners = pd.concat([cameras[BOX[:2]].min(), cameras[BOX[2:]].max()], axis=1)
    corners = corners.reindex(store.serials).fillna(store.ingested / 2).to_numpy()
    corners = corners * (size / store.ingested)
    lower = np.floor(corners[:, :2] - MARGIN * size).clip(min=0)
    upper = np.ceil(corners[:, 2:] + MARGIN * size).clip(max=size)
    sides = (np.ceil((upper - lower).max(axis=0) / multiple) * multiple).clip(max=size)
    start = np.floor((lower + upper - sides) / 2).clip(0, size - sides).astype(int)
    width, height = sides.astype(int).tolist()
    return Boxes(tuple((left, top) for left, top in start.tolist()), height, width)


@dataclass(frozen=True)
class Draw:
    """What a step sees: B timesteps, each in K cameras.

    Attributes:
        frames: B indices into the frames. cameras: B × K indices into the cameras.
    """

    frames: tuple[int, ...]
    cameras: tuple[tuple[int, ...], ...]


def draw(seed: int, step: int, usable: NDArray[np.bool_], timesteps: int, views: int) -> Draw:
    """Timesteps and usable cameras at random, from the seed, the step and what is usable.

    Args:
        usable: (F, C) of F frames and C cameras; every frame has one.
        timesteps, views: how many to draw; all different as far as there are enough usable ones,
            repeated beyond. More views than cameras are never drawn.
    """
    random = np.random.default_rng([seed, step])
    frames, cameras = usable.shape
    chosen = random.choice(frames, timesteps, replace=timesteps > frames)
    views = min(views, cameras)

    def pick(frame: int) -> tuple[int, ...]:
        able = np.flatnonzero(usable[frame])
        different = random.choice(able, min(views, len(able)), replace=False)
        return tuple(np.resize(different, views).tolist())

    return Draw(tuple(chosen.tolist()), tuple(pick(frame) for frame in chosen))


@dataclass(frozen=True)
class Batch:
    """The pixels of a step, on the training device.

    Attributes:
        frames: (B,) int64. cameras: (B, K) int64.
        pixels: (B, K, H, W, 4) uint8: colour on white, and alpha.
    """

    frames: Tensor
    cameras: Tensor
    pixels: Tensor


def unpack(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, W, 4) uint8 to images (..., H, W, 3) and alpha (..., H, W), both in [0, 1]."""
    values = pixels.float() / 255
    return values[..., :3], values[..., 3]


@dataclass(frozen=True)
class Pending:
    """A step in preparation.

    Attributes:
        draw: what it sees.
        host: what the threads fill: pixels (B, K, H, W, 4) uint8, or alpha (B, K, H, W) alone where
            the GPU decodes the colours.
        views: B · K of them; each gives the JPEG in the latter case.
    """

    draw: Draw
    host: Tensor
    views: tuple[Future[Any], ...]


class Loader:
    """Batches of training images, those of the next steps prepared by threads meanwhile.

    On CUDA they are uploaded on a stream of their own. The threads never call CUDA, and `batch`
    does so only in the thread that calls it, so a graph may be captured between two calls.

    Args:
        frames: where the images come from; their tracking says on which device they are wanted.
        seed: of the draws.
        timesteps, views: per step; fewer views where there are fewer cameras.
        gpu_decoding: decode JPEGs on the GPU where that works and pixels are not kept in memory.
    """

    def __init__(
        self, frames: FrameSet, seed: int, timesteps: int, views: int, gpu_decoding: bool = True
    ):
        self.frames, self.seed, self.timesteps, self.views = frames, seed, timesteps, views
        self.device = frames.expression.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.gpu_decoding = gpu_decoding and frames.store.keeps_files and nvjpeg_works(self.device)
        shape = (timesteps, min(views, len(frames.serials)), frames.height, frames.width)
        self.shape = shape if self.gpu_decoding else (*shape, 4)
        threads = len(sched_getaffinity(0))
        affordable = max(1, PREFETCH_BYTES // math.prod(self.shape))
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
                torch.tensor(ready.draw.frames), torch.tensor(ready.draw.cameras), ready.host
            )
        return self._upload(ready, results, self.stream)

    def _prepare(self, step: int) -> Pending:
        """Hand the views of a step to the threads."""
        store = self.frames.store
        drawn = draw(self.seed, step, self.frames.usable, self.timesteps, self.views)
        host = torch.empty(self.shape, dtype=torch.uint8, pin_memory=self.stream is not None)
        fill = store.fill_alpha if self.gpu_decoding else store.fill
        views = tuple(
            self.pool.submit(fill, frame, camera, image)
            for frame, cameras, images in zip(
                drawn.frames, drawn.cameras, host.numpy(), strict=True
            )
            for camera, image in zip(cameras, images, strict=True)
        )
        return Pending(drawn, host, views)

    def _upload(self, ready: Pending, results: Sequence[Any], stream: torch.cuda.Stream) -> Batch:
        """The batch on the GPU; the caller's stream waits for it.

        Torch's allocators keep what is pinned until it is copied and, being told of the caller's
        stream, the batch until that has read it.
        """

        def send(pinned: Tensor) -> Tensor:
            return pinned.to(self.device, non_blocking=True)

        with torch.cuda.stream(stream):
            frames = send(torch.tensor(ready.draw.frames).pin_memory())
            cameras = send(torch.tensor(ready.draw.cameras).pin_memory())
            host = send(ready.host)
            pixels = self._decode(results, host, ready.draw, stream) if self.gpu_decoding else host
        batch = Batch(frames, cameras, pixels)
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_stream(stream)
        for tensor in (batch.frames, batch.cameras, batch.pixels):
            tensor.record_stream(consumer)
        return batch

    def _decode(
        self, jpegs: Sequence[Array], alpha: Tensor, drawn: Draw, stream: torch.cuda.Stream
    ) -> Tensor:
        """(B, K, H, W, 4) uint8 on the GPU from JPEGs and alpha (B, K, H, W)."""
        # Torchvision decodes on a stream of its own, which does not wait for this one to have done
        # with the memory that the colours go to. It makes the host wait for the colours.
        stream.synchronize()
        colours = decode_by_nvjpeg(jpegs, self.device)
        pixels = alpha.new_empty((*alpha.shape, 4))
        cameras = [camera for row in drawn.cameras for camera in row]
        # One at a time: their floats take four times the room.
        views = zip(pixels.flatten(0, 1), colours, alpha.flatten(0, 1), cameras, strict=True)
        for image, colour, cover, camera in views:
            rows, columns = self.frames.store.boxes.window(camera)
            darkness = (255 - colour[:, rows, columns]) * (cover.float() / 255)
            image[..., :3] = (255 - darkness.round()).permute(1, 2, 0)
            image[..., 3] = cover
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


def decode_by_nvjpeg(jpegs: Sequence[Array], device: torch.device) -> list[Tensor]:
    """JPEGs as bytes to (3, H, W) RGB uint8 each, on a GPU; the host waits for it.

    Raises:
        RuntimeError: torchvision has no nvJPEG, or it cannot decode one of them.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.from_numpy(jpeg) for jpeg in jpegs]
    return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
