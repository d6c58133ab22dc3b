"""A capture of one timestep without frames: the masks of a person in a rig's cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from eavatar.cameras import Camera
from eavatar.io import Mesh, Sequences, Tracking, write_arrays, write_cameras, write_sequences
from eavatar.meshes import sample_surface
from tests.scenes.small_capture import world_to_camera

SEQUENCE = "EXP-1-head"
SCALE = 0.1  # metres per canonical unit
SIZE = 256  # of an image, pixels
FORWARD = np.float32([0, 0, 0.06])  # metres; the cameras look at the middle of the head
VIEW = 3.6  # of what an image shows, canonical units: head and neck


def write_outlines(
    capture: Path, face: Path, person: Mesh, cameras: int, matte: float, seed: int
) -> None:
    """Write ``capture/`` and ``face/tracking/``: masks from -90° to 90° around a neutral person.

    Args:
        capture: folder to write.
        face: likewise.
        person: in canonical space.
        cameras: number of them.
        matte: standard deviation of the error of a mask's edge, pixels.
        seed: of that error.
    """
    random = np.random.default_rng(seed)
    points, _ = sample_surface(person, 4 * SIZE**2, seed)
    focal = SIZE / (VIEW * SCALE)
    intrinsics = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    rig = {
        f"{number:02d}": Camera(intrinsics, world_to_camera(azimuth), SIZE, SIZE)
        for number, azimuth in enumerate(np.radians(np.linspace(-90, 90, cameras)))
    }
    (capture / "visible").mkdir(parents=True)
    (capture / "masks" / SEQUENCE).mkdir(parents=True)
    rows = []
    for serial, camera in rig.items():
        mask = spoil(draw_mask(SCALE * points + FORWARD, camera), matte, random)
        folder = capture / "masks" / SEQUENCE / serial
        folder.mkdir()
        cv2.imwrite(str(folder / "00000.png"), mask)
        cv2.imwrite(str(capture / "visible" / f"{serial}.png"), np.full_like(mask, 255))
        rows.append((SEQUENCE, 0, serial, 0, 0, SIZE, SIZE, 0))
    names = ["sequence", "timestep", "camera", "left", "top", "right", "bottom", "failed"]
    table = pd.DataFrame(rows, columns=names).drop(columns="sequence")
    table.to_csv(capture / "masks" / f"{SEQUENCE}.csv", index=False)
    table[["timestep", "camera"]].to_csv(capture / f"{SEQUENCE}.csv", index=False)
    write_cameras(capture / "cameras.json", rig)
    write_sequences(capture / "sequences.json", Sequences((SEQUENCE,), ()))
    tracking = Tracking(
        np.zeros((1, 1), np.float32), np.zeros((1, 3), np.float32), FORWARD[None],
        np.zeros((1, 68, 3), np.float32), np.zeros((1, cameras), np.float32),
    )  # fmt: skip
    write_arrays(face / "tracking" / f"{SEQUENCE}.npz", tracking)


def draw_mask(points: np.ndarray, camera: Camera) -> np.ndarray:
    """(H, W) uint8: what dense samples (N, 3) of a surface cover, world."""
    pixels, _ = camera.project(points)
    columns, rows = np.floor(pixels).astype(int).T
    inside = (columns >= 0) & (columns < SIZE) & (rows >= 0) & (rows < SIZE)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[rows[inside], columns[inside]] = 255
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))


def spoil(mask: np.ndarray, matte: float, random: np.random.Generator) -> np.ndarray:
    """A mask whose edge is displaced, smoothly along itself, by some pixels."""
    signed = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(
        255 - mask, cv2.DIST_L2, 5
    )
    waves = cv2.resize(random.normal(0, matte, (9, 9)), mask.shape, interpolation=cv2.INTER_CUBIC)
    return np.where(signed + waves > 0, 255, 0).astype(np.uint8)
