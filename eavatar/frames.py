"""The ingested frames, masks and tracking of a subject, as training and tables use them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from eavatar.errors import UserError
from eavatar.io import Identity, Tracking, read_arrays, read_cameras, require

Array = NDArray[Any]

CACHE_BYTES = 4 * 2**30


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


class ImageStore:
    """Frames composited on white and their masks, decoded on demand and kept up to a budget.

    Args:
        capture: ``results/<subject>/capture``.
        keys: (sequence, timestep) of each of F frames.
        serials: C camera serial numbers.
        size: side of the square images, pixels.
    """

    def __init__(
        self, capture: Path, keys: Sequence[tuple[str, int]], serials: Sequence[str], size: int
    ):
        self.capture, self.keys, self.serials, self.size = capture, keys, serials, size
        self.kept: dict[tuple[int, int], Array] = {}
        self.capacity = CACHE_BYTES // (4 * size * size)
        self.pool = ThreadPoolExecutor()

    def read(self, frame: int, cameras: Sequence[int]) -> Array:
        """(K, H, W, 4) uint8: colour on white, and alpha."""
        return np.stack(list(self.pool.map(lambda camera: self._one(frame, camera), cameras)))

    def _one(self, frame: int, camera: int) -> Array:
        if (frame, camera) in self.kept:
            return self.kept[frame, camera]
        sequence, timestep = self.keys[frame]
        place = Path(sequence, self.serials[camera], f"{timestep:05d}")
        colour = read_colour((self.capture / place).with_suffix(".jpg"))
        alpha = read_grey((self.capture / "masks" / place).with_suffix(".png"))
        weight = (alpha.astype(np.float32) / 255)[..., None]
        white = colour * weight + 255 * (1 - weight)
        image = resize_area(np.dstack([white, alpha]), self.size)
        if len(self.kept) < self.capacity:
            self.kept[frame, camera] = image
        return image


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
        return self.store.size

    @property
    def width(self) -> int:
        return self.store.size

    def views(self, frame: int, cameras: Sequence[int]) -> Views:
        """The views of one frame, on the device of the tracking."""
        chosen = list(cameras)
        packed = torch.from_numpy(self.store.read(frame, chosen)).to(self.expression.device)
        values = packed.float() / 255
        return Views(values[..., :3], values[..., 3], self.visible[chosen])

    def to(self, device: torch.device) -> FrameSet:
        """The same frames with tracking and cameras on a device; images follow when drawn."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    @classmethod
    def read(cls, capture: Path, face: Path, split: str, image_size: int) -> FrameSet:
        """Read a split's frames at a size (area averaging), with the tracking of their sequences.

        Args:
            capture: ``results/<subject>/capture``; face: ``results/<subject>/face``.
            split: ``train`` or ``test``.
            image_size: side of the square images, pixels; at most the ingested size.
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
            store=ImageStore(capture, keys, tuple(cameras), image_size),
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


def resize_area(image: Array, size: int) -> Array:
    """(H, W, ...) of any numeric type to (size, size, ...) uint8, each pixel the mean it covers."""
    if image.shape[0] != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image if image.dtype == np.uint8 else image.round().astype(np.uint8)


def read_colour(path: Path) -> Array:
    """An ingested frame (H, W, 3), RGB uint8."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"the frame {path} is missing or unreadable; run `ingest` again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_grey(path: Path) -> Array:
    """A mask (H, W), uint8."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UserError(f"the mask {path} is missing or unreadable; run `matte` again.")
    return image
