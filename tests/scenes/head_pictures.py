"""A subject's ``capture`` and ``face`` folders with pictures that compress like photographs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from eavatar.cameras import Camera
from eavatar.io import Identity, Sequences, Tracking, write_arrays, write_cameras, write_sequences

EXPRESSIONS = 3
SCALE = 0.1
BOX = ["left", "top", "right", "bottom"]


def write_pictures(root: Path, size: int, timesteps: int, cameras: int, quality: int = 95) -> Path:
    """Write the training sequence ``EXP-1`` and the test sequence ``FREE`` of one timestep.

    A textured blob of head size on a textured background, elsewhere in every picture. With the
    noise of a good camera, 2048² JPEGs of quality 95 have about 1 MB.
    """
    random = np.random.default_rng(0)
    serials = [f"{222200000 + index}" for index in range(cameras)]
    intrinsics = np.array([[3.6 * size, 0, size / 2], [0, 3.6 * size, size / 2], [0, 0, 1]])
    pose = np.eye(4)
    pose[2, 3] = 1.0
    arc = {serial: Camera(intrinsics, pose, size, size) for serial in serials}
    write_cameras(root / "capture" / "cameras.json", arc)
    for serial in serials:
        _write(root / "capture" / "visible" / f"{serial}.png", np.full((size, size), 255, np.uint8))
    identity = Identity(np.zeros(2, np.float32), np.float32(SCALE), np.zeros((68, 3), np.float32))
    write_arrays(root / "face" / "identity.npz", identity)
    fields = _surface(random, size), _noise(random, size)
    write_sequences(root / "capture" / "sequences.json", Sequences(("EXP-1",), ("FREE",)))
    for name, count in (("EXP-1", timesteps), ("FREE", 1)):
        shapes = (EXPRESSIONS,), (3,), (3,), (68, 3), (1,)
        track = Tracking(*(np.zeros((count, *shape), np.float32) for shape in shapes))
        write_arrays(root / "face" / "tracking" / f"{name}.npz", track)
        _write_sequence(root / "capture", name, count, serials, fields, quality)
    return root


def _write_sequence(
    capture: Path,
    name: str,
    timesteps: int,
    serials: list[str],
    fields: tuple[np.ndarray, np.ndarray],
    quality: int,
) -> None:
    places = [(timestep, camera) for timestep in range(timesteps) for camera in range(len(serials))]

    def write(place: tuple[int, int]) -> list:
        """One view; returns its row in the index of masks."""
        timestep, camera = place
        colour, alpha = picture(np.random.default_rng([len(name), *place]), *fields)
        path = Path(name, serials[camera], f"{timestep:05d}")
        jpeg = (cv2.IMWRITE_JPEG_QUALITY, quality)
        _write((capture / path).with_suffix(".jpg"), colour, jpeg)
        png = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)  # as `matte` writes them
        _write((capture / "masks" / path).with_suffix(".png"), alpha, png)
        left, top, width, height = cv2.boundingRect(alpha)
        return [timestep, serials[camera], left, top, left + width, top + height, 0]

    with ThreadPoolExecutor() as pool:
        boxes = list(pool.map(write, places))
    rows = [[timestep, serials[camera], timestep, 1.0] for timestep, camera in places]
    columns = ["timestep", "camera", "source_frame", "sharpness"]
    pd.DataFrame(rows, columns=columns).to_csv(capture / f"{name}.csv", index=False)
    table = pd.DataFrame(boxes, columns=["timestep", "camera", *BOX, "failed"])
    table.to_csv(capture / "masks" / f"{name}.csv", index=False)


def picture(
    random: np.random.Generator, surface: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) uint8 and its mask (S, S) uint8, from a texture and noise (S, S, 3) about 0."""
    size = len(surface)
    moved, grain = (
        np.roll(field, tuple(random.integers(size, size=2)), axis=(0, 1))
        for field in (surface, noise)
    )
    axis = np.arange(size, dtype=np.float32) / size
    down, across = axis - random.uniform(0.42, 0.58), axis - random.uniform(0.42, 0.58)
    radius = np.hypot(across / 0.28, down[:, None] / 0.36) + 0.1 * moved[..., 0]
    alpha = np.clip((1 - radius) * 30, 0, 1)
    skin = np.array([100, 120, 160], np.float32) + 60 * surface
    background = np.array([150, 145, 140], np.float32) + 8 * moved
    colour = background + alpha[..., None] * (skin - background) + grain
    return colour.clip(0, 255).astype(np.uint8), (255 * alpha).round().astype(np.uint8)


def _surface(random: np.random.Generator, size: int) -> np.ndarray:
    """(S, S, 3) about 0: octaves of smooth noise, each half as strong as the one before."""
    total = np.zeros((size, size, 3), np.float32)
    for octave in range(1, 8):
        grid = random.standard_normal((2**octave, 2**octave, 3), np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total


def _noise(random: np.random.Generator, size: int) -> np.ndarray:
    """(S, S, 3) levels: 2 in brightness, and 1 in each colour."""
    grey = random.standard_normal((size, size, 1), np.float32)
    return 2 * grey + random.standard_normal((size, size, 3), np.float32)


def _write(path: Path, image: np.ndarray, parameters: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, parameters)
