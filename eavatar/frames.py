"""The ingested frames, masks and tracking of a subject, as training and tables use them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from eavatar.errors import UserError
from eavatar.images import Boxes, ImageStore, make_pool, read_grey, resize_area
from eavatar.io import Identity, Tracking, read_arrays, read_cameras, require

Array = NDArray[Any]

GIB = 2**30
PREFETCH_BYTES = GIB  # most pixels of coming steps


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

        Args:
            capture: ``results/<subject>/capture``; face: ``results/<subject>/face``.
            split: ``train`` or ``test``.
            image_size: side of the square images, pixels; at most the ingested size.
            memory_gb: host memory for images, 2^30 bytes.
        Raises:
            UserError: a contract file is missing or malformed, or the split has no frame.
        """
        cameras = read_cameras(capture / "cameras.json")
        ingested = next(iter(cameras.values())).width
        if image_size > ingested:
            raise UserError(
                f"image_size {image_size} is larger than the ingested frames ({ingested} pixels); "
                "lower it or raise capture.ingest.image_size."
            )
        index = read_index(capture, split)
        pairs = (
            index[["sequence", "timestep"]].drop_duplicates().sort_values(["sequence", "timestep"])
        )
        keys = [(str(sequence), int(timestep)) for sequence, timestep in pairs.to_numpy()]
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


@dataclass(frozen=True)
class Draw:
    """What a step sees: B timesteps, each in K different cameras.

    Attributes:
        frames: B indices into the frames. cameras: B × K indices into the cameras.
    """

    frames: tuple[int, ...]
    cameras: tuple[tuple[int, ...], ...]


def draw(seed: int, step: int, frames: int, cameras: int, timesteps: int, views: int) -> Draw:
    """Timesteps and cameras at random, from the seed and the step alone.

    Args:
        frames, cameras: how many there are.
        timesteps, views: how many to draw; all different as far as there are enough. More views
            than cameras are never drawn.
    """
    random = np.random.default_rng([seed, step])
    chosen = random.choice(frames, timesteps, replace=timesteps > frames)
    views = min(views, cameras)
    return Draw(
        tuple(chosen.tolist()),
        tuple(tuple(random.choice(cameras, views, replace=False).tolist()) for _ in chosen),
    )


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
    """The draw of a step and its pixels on the host, which the futures fill."""

    draw: Draw
    pixels: Tensor
    futures: tuple[Future[None], ...]


class Loader:
    """Batches of training images, those of the next steps prepared by threads meanwhile.

    Args:
        frames: where the images come from; their tracking says on which device they are wanted.
        seed: of the draws.
        timesteps, views: per step; fewer views where there are fewer cameras.
    """

    def __init__(self, frames: FrameSet, seed: int, timesteps: int, views: int):
        self.frames, self.seed, self.timesteps, self.views = frames, seed, timesteps, views
        self.device = frames.expression.device
        self.pool = make_pool()
        self.shape = (timesteps, min(views, len(frames.serials)), frames.height, frames.width, 4)
        self.depth = 4
        self.pending: dict[int, Pending] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same whatever was asked for before.

        Raises:
            UserError: an image is missing or damaged.
        """
        for stale in self.pending.keys() - range(step, step + self.depth):
            self._cancel(self.pending.pop(stale))
        for coming in range(step, step + self.depth):
            if coming not in self.pending:
                self.pending[coming] = self._submit(coming)
        ready = self.pending.pop(step)
        for future in ready.futures:
            future.result()
        return Batch(
            torch.tensor(ready.draw.frames, device=self.device),
            torch.tensor(ready.draw.cameras, device=self.device),
            ready.pixels.to(self.device),
        )

    def _submit(self, step: int) -> Pending:
        sizes = len(self.frames), len(self.frames.serials), self.timesteps, self.views
        drawn = draw(self.seed, step, *sizes)
        pixels = torch.empty(self.shape, dtype=torch.uint8)
        futures = tuple(
            self.pool.submit(self.frames.store.fill, frame, camera, image)
            for frame, cameras, images in zip(
                drawn.frames, drawn.cameras, pixels.numpy(), strict=True
            )
            for camera, image in zip(cameras, images, strict=True)
        )
        return Pending(drawn, pixels, futures)

    @staticmethod
    def _cancel(pending: Pending) -> None:
        for future in pending.futures:
            future.cancel()

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
