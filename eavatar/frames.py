"""The ingested frames, masks and tracking of a subject, as the training stages and tables use them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from eavatar.errors import UserError
from eavatar.io import Identity, Tracking, read_arrays, read_cameras, require


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
        visible: (C, H, W).
        images: (F, C, H, W, 3) uint8 on white; masks: (F, C, H, W) uint8.
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
    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def height(self) -> int:
        return self.images.shape[2]

    @property
    def width(self) -> int:
        return self.images.shape[3]

    def views(self, frame: int, cameras: Sequence[int]) -> Views:
        """The views of one frame, on the device of the tracking."""
        chosen = list(cameras)
        device = self.expression.device
        images = self.images[frame, chosen].to(device).float() / 255
        masks = self.masks[frame, chosen].to(device).float() / 255
        return Views(images, masks, self.visible[chosen])

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
        index = read_index(capture, split)
        keys = list(index.groupby(["sequence", "timestep"], sort=True).groups)
        identity = read_arrays(Identity, face / "identity.npz")
        names = sorted({sequence for sequence, _ in keys})
        tracks = {name: read_arrays(Tracking, face / f"{name}.npz") for name in names}
        images, masks = _read_images(capture, keys, list(cameras), image_size)
        resized = [camera.resize(image_size, image_size) for camera in cameras.values()]
        visible = [_read_grey(capture / "visible" / f"{s}.png", image_size) for s in cameras]

        def gather(field: str) -> Tensor:
            rows = [getattr(tracks[sequence], field)[timestep] for sequence, timestep in keys]
            return torch.from_numpy(np.stack(rows))

        def stack(arrays: Sequence[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).float()

        return cls(
            sequences=tuple(sequence for sequence, _ in keys),
            timesteps=tuple(int(timestep) for _, timestep in keys),
            expression=gather("expression"),
            rotation=gather("rotation"),
            translation=gather("translation"),
            landmarks=gather("landmarks"),
            scale=float(identity.scale),
            neutral_landmarks=torch.from_numpy(identity.landmarks),
            serials=tuple(cameras),
            intrinsics=stack([camera.intrinsics for camera in resized]),
            world_to_camera=stack([camera.world_to_camera for camera in resized]),
            visible=(stack(visible) >= 255).float(),
            images=images,
            masks=masks,
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


def _read_images(
    capture: Path, keys: list[tuple[str, int]], serials: list[str], size: int
) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(keys), len(serials), size, size, 3, dtype=torch.uint8)
    masks = torch.empty(len(keys), len(serials), size, size, dtype=torch.uint8)

    def read(frame: int) -> None:
        sequence, timestep = keys[frame]
        for camera, serial in enumerate(serials):
            place = Path(sequence, serial, f"{timestep:05d}")
            colour = _read_colour((capture / place).with_suffix(".jpg"))
            alpha = _read_grey((capture / "masks" / place).with_suffix(".png"))
            weight = (alpha.astype(np.float32) / 255)[..., None]
            white = colour * weight + 255 * (1 - weight)
            images[frame, camera] = torch.from_numpy(_resize(white, size))
            masks[frame, camera] = torch.from_numpy(_resize(alpha, size))

    with ThreadPoolExecutor() as pool:
        list(tqdm(pool.map(read, range(len(keys))), total=len(keys), desc="frames", unit="frame"))
    return images, masks


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[0] != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image.round().astype(np.uint8) if image.dtype != np.uint8 else image


def _read_colour(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"the frame {path} is missing or unreadable; run `ingest` again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read_grey(path: Path, size: int | None = None) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UserError(f"the mask {path} is missing or unreadable; run `matte` again.")
    return image if size is None else _resize(image, size)
