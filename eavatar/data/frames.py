"""The ingested frames, masks and tracking of a subject, as training and tables use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eavatar.arrays import Bool, Image
from eavatar.data.camera_split import split_cameras
from eavatar.data.images import Boxes, ImageStore, read_grey, read_rgb, resize_area
from eavatar.errors import UserError
from eavatar.io import (
    BACKGROUND,
    Identity,
    Tracking,
    read_arrays,
    read_cameras,
    read_sequences,
    read_table,
)
from eavatar.threads import make_pool

GIB = 2**30
MARGIN = 0.02  # of the image around the masks, for soft edges and what moves beyond them
BOX = ["left", "top", "right", "bottom"]


@dataclass(frozen=True)
class Views:
    """Several cameras of one timestep.

    Attributes:
        images: (K, H, W, 3) in [0, 1], on white by the mask.
        masks: (K, H, W) in [0, 1].
        visible: (K, H, W) 1 inside the sensor, 0 in the padding of the crop.
    """

    images: Tensor
    masks: Tensor
    visible: Tensor


@dataclass(frozen=True)
class FrameSet:
    """All timesteps of some sequences on one axis of T timesteps, for C cameras.

    Attributes:
        sequences: T names.
        timesteps: T indices within the sequence.
        expression: (T, E).
        appearance: (T, K).
        gaze: (T, G) radians, G = 2 or 0.
        rotation: (T, 3) axis-angle.
        translation: (T, 3) metres.
        landmarks: (T, 68, 3) world, metres.
        scale: canonical units to metres.
        neutral_landmarks: (68, 3) canonical.
        serials: C camera serial numbers.
        intrinsics: (C, 3, 3) pixels of the images held here.
        world_to_camera: (C, 4, 4).
        visible: (C, H, W) 1 inside the sensor, 0 in the padding of the crop.
        usable: (T, C) bool, on the host: whether the mask of a frame has not failed; each timestep
            has a usable frame.
        store: the images.
    """

    sequences: tuple[str, ...]
    timesteps: tuple[int, ...]
    expression: Tensor
    appearance: Tensor
    gaze: Tensor
    rotation: Tensor
    translation: Tensor
    landmarks: Tensor
    scale: float
    neutral_landmarks: Tensor
    serials: tuple[str, ...]
    intrinsics: Tensor
    world_to_camera: Tensor
    visible: Tensor
    usable: Bool
    store: ImageStore

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def height(self) -> int:
        return self.store.boxes.height

    @property
    def width(self) -> int:
        return self.store.boxes.width

    @property
    def device(self) -> torch.device:
        """Where tracking and cameras are, and images go to."""
        return self.expression.device

    @property
    def driving(self) -> Tensor:
        """(T, E + G + K) expression, gaze and appearance, side by side."""
        return torch.cat([self.expression, self.gaze, self.appearance], dim=1)

    @property
    def poses(self) -> Tensor:
        """(T, 6) rotation, axis-angle, then translation, metres."""
        return torch.cat([self.rotation, self.translation], dim=1)

    def views(self, timestep: int, cameras: Sequence[int]) -> Views:
        """Some cameras' frames of one of the T timesteps, on the device of the tracking."""
        chosen = list(cameras)
        packed = torch.from_numpy(self.store.read(timestep, chosen)).to(self.device)
        return Views(*unpack(packed), self.visible[chosen])

    def images_with_set(self, timestep: int, cameras: Sequence[int]) -> Tensor:
        """(K, H, W, 3) as `views`, but with the set left in where the mask is soft."""
        packed = torch.from_numpy(self.store.read_with_set(timestep, list(cameras)))
        return unpack(packed.to(self.device))[0]

    def usable_cameras(self, timestep: int) -> list[int]:
        """The cameras whose frame at one of the T timesteps is usable, at least one."""
        return np.flatnonzero(self.usable[timestep]).tolist()

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
        cls,
        capture: Path,
        face: Path,
        split: str,
        image_size: int,
        memory_gb: float = 4,
        held_out: Sequence[str] = (),
    ) -> FrameSet:
        """Read a split's frames at a size (area averaging), with the tracking of their sequences.

        Timesteps at which the masks of all cameras have failed are left out.

        Args:
            capture: ``results/<subject>/capture``.
            face: ``results/<subject>/face``.
            split: ``train`` or ``test``.
            image_size: side of the square images, pixels; at most the ingested size.
            memory_gb: host memory for images, 2^30 bytes.
            held_out: cameras that belong to the split ``test`` alone, as of `split_cameras`.
        Raises:
            UserError: a contract file is missing or malformed, or the split has no usable frame.
        """
        every = read_cameras(capture / "cameras.json")
        training, measured = split_cameras(every, held_out)
        cameras = {name: every[name] for name in (training if split == "train" else measured)}
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
        visible = [
            read_grey(capture / "visible" / f"{serial}.png", "calibrate") for serial in cameras
        ]
        whole = Boxes(((0, 0),) * len(cameras), image_size, image_size)

        def gather(field: str) -> Tensor:
            rows = [getattr(tracks[sequence], field)[timestep] for sequence, timestep in keys]
            return torch.from_numpy(np.stack(rows))

        def stack(arrays: Sequence[Image]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).float()

        return cls(
            sequences=tuple(sequence for sequence, _ in keys),
            timesteps=tuple(timestep for _, timestep in keys),
            expression=gather("expression"),
            appearance=gather("appearance"),
            gaze=gather("gaze"),
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
                capture,
                keys,
                tuple(cameras),
                ingested,
                image_size,
                whole,
                int(memory_gb * GIB),
                read_backgrounds(capture, sorted(names), tuple(cameras)),
            ),
        )


def read_index(capture: Path, split: str) -> pd.DataFrame:
    """The rows of ``capture/<sequence>.csv`` of a split's sequences, with a column ``sequence``."""
    names = getattr(read_sequences(capture / "sequences.json"), split)
    tables = [_read_sequence(capture, name) for name in names]
    index = pd.concat(tables) if tables else pd.DataFrame()
    if index.empty:
        raise UserError(f"{capture} has no frame in the split '{split}'; check capture.ingest.")
    return index


def _read_sequence(capture: Path, name: str) -> pd.DataFrame:
    path = capture / f"{name}.csv"
    return read_table(path, "the index of the sequence", ["camera"]).assign(sequence=name)


def read_usable(
    capture: Path, split: str, serials: Sequence[str]
) -> tuple[list[tuple[str, int]], Bool]:
    """The (sequence, timestep) of a split's T timesteps, and which of C cameras are usable (T, C).

    Left out are timesteps without any usable frame.
    """
    index = read_index(capture, split)
    masks = pd.concat([read_masks(capture, name) for name in sorted(set(index["sequence"]))])
    frames = index.merge(masks, on=["sequence", "timestep", "camera"])
    good = frames[frames["failed"] == 0].pivot_table(
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
    path = capture / "masks" / f"{sequence}.csv"
    table = read_table(path, "the index of the masks", ["camera"]).assign(sequence=sequence)
    if not {*BOX, "failed"} <= set(table):
        raise UserError(f"{path} was written by an earlier version; run `matte` again.")
    return table


def read_backgrounds(
    capture: Path, sequences: Sequence[str], serials: Sequence[str]
) -> list[Image | None]:
    """Of each camera the set behind the person, (S, S, 3) RGB uint8, or None if `matte` wrote none.

    It is the mean over the sequences: one image a camera takes little memory, one for each sequence
    would take as much as many frames.
    """

    def read(serial: str) -> Image | None:
        paths = [capture / "masks" / name / serial / BACKGROUND for name in sequences]
        found = [path for path in paths if path.exists()]
        if not found:
            return None
        total = np.zeros_like(read_rgb(found[0], "matte"), np.uint32)
        for path in found:
            total += read_rgb(path, "matte")
        mean: Image = ((total + len(found) // 2) // len(found)).astype(np.uint8)
        return mean

    with make_pool() as pool:
        return list(pool.map(read, serials))


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


def unpack(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, W, 4) uint8 to images (..., H, W, 3) and masks (..., H, W), both in [0, 1]."""
    values = pixels.float() / 255
    return values[..., :3], values[..., 3]
