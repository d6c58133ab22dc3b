"""Cross-identity reenactment (Sec. 4.4): one person's avatar moved by another's tracking.

What is transferred is the difference from rest, of expression and of pose, as two people's neutral
faces, seats and cameras differ. Their morphable models may differ, too: see
`eavatar.view.expressions`. Letters: T timesteps, E expression coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Bool, Float32, Float64, Image
from eavatar.avatar.files import load_avatar
from eavatar.data.images import read_rgb
from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.io import (
    Identity,
    Tracking,
    read_arrays,
    read_cameras,
    read_sequences,
    read_tracking,
)
from eavatar.results import Results
from eavatar.tables.drawing import write_image
from eavatar.tables.evaluate import strongest_of_runs
from eavatar.tables.figures import GAP, HEADER, assemble, to_tile, write_label
from eavatar.view.expressions import Face, expression_map
from eavatar.view.player import QUALITY, RATE, Player, draw_tracking, most_frontal, read_drive

SHEET_COLUMNS = 6
# Of all timesteps, those whose expression moves the landmarks least. The median would do for whole
# captures, but is no rest in a video that acts most of the time.
CALM = 0.2


@dataclass(frozen=True)
class Rest:
    """A person at rest, by all that was tracked of them.

    Attributes:
        expression: (E,) mean of the calmest timesteps.
        rotation: mean of the head.
        translation: (3,) median, metres.
        scale: canonical units to metres.
        gaze_size: 2 if their gaze is tracked, else 0: an avatar's eyes then stay straight.
    """

    expression: Float32
    rotation: Rotation
    translation: Float64
    scale: float
    gaze_size: int

    @classmethod
    def read(cls, results: Results, face: Face) -> Rest:
        """Of the sequences that are in use.

        Raises:
            UserError: a contract file is missing or malformed, or they are not of one tracking.
        """
        names = read_sequences(results.capture / "sequences.json").names
        tracks = [read_tracking(results.tracking(name)) for name in names]
        identity = read_arrays(Identity, results.face / "identity.npz")
        expression, rotation, translation = (
            np.concatenate([getattr(track, field)[_seen(track)] for track in tracks])
            for field in ("expression", "rotation", "translation")
        )
        if face.basis.shape[2] != expression.shape[1]:
            raise UserError(
                f"{results.face}/expression_basis.npz has {face.basis.shape[2]} expression "
                f"coefficients, but the tracking beside it {expression.shape[1]}; track the "
                "person again."
            )
        moved = np.einsum("lij,tj->tli", face.landmark_basis, expression)
        motion = np.linalg.norm(moved, axis=(1, 2))
        calm = np.argsort(motion)[: math.ceil(CALM * len(motion))]
        return cls(
            expression[calm].mean(axis=0),
            Rotation.from_rotvec(rotation).mean(),
            np.median(translation, axis=0).astype(np.float64),
            float(identity.scale),
            tracks[0].gaze.shape[1],
        )


def _seen(tracking: Tracking) -> Bool:
    """(T,) where a face was seen; elsewhere expression and pose are interpolated."""
    return np.asarray(np.isfinite(tracking.reprojection_error).any(axis=1))


def retarget(
    tracking: Tracking, driver: Rest, avatar: Rest, expressions: Float64, smoothing: float
) -> Tracking:
    """The tracking of one person as motion of another.

    The expression is the driver's less the driver's at rest, in the avatar's model, plus the
    avatar's at rest; the appearance is what the avatar predicts from it. The gaze is the driver's,
    straight where it is not tracked. The head turns and moves from the avatar's pose at rest as the
    driver's does from theirs, in the head's axes and relative to the head's size.

    Args:
        tracking: of the driver.
        driver: at rest.
        avatar: at rest.
        expressions: (E of the avatar, E of the driver), see `expression_map`.
        smoothing: of the pose, see `low_pass`.
    """
    acted = tracking.expression - driver.expression
    turned = driver.rotation.inv() * Rotation.from_rotvec(tracking.rotation)
    moved = driver.rotation.inv().apply(tracking.translation - driver.translation) / driver.scale
    turned = Rotation.from_rotvec(low_pass(turned.as_rotvec(), smoothing))
    moved = avatar.scale * low_pass(moved, smoothing)
    return replace(
        tracking.with_expression(acted @ expressions.T + avatar.expression),
        gaze=tracking.gaze[:, : avatar.gaze_size],  # an avatar without would refuse it
        rotation=(avatar.rotation * turned).as_rotvec().astype(np.float32),
        translation=(avatar.rotation.apply(moved) + avatar.translation).astype(np.float32),
    )


def low_pass(values: Float64, smoothing: float) -> Float64:
    """Rows (T, 3), each mixed with the result before it, whose fraction is the smoothing.

    At 0 nothing changes; 0.5 is what Gaussian Head Avatar does.
    """
    result = values.copy()
    for timestep in range(1, len(values)):
        result[timestep] += smoothing * (result[timestep - 1] - values[timestep])
    return result


def reenact(
    avatar: Path,
    variants: Sequence[Path],
    driver: Path,
    sequence: str,
    smoothing: float,
    freeze_gaze: bool,
    output: Path,
) -> Path:
    """Write a video, the driver beside each variant of the avatar, and a contact sheet.

    Both people are seen from their most frontal cameras, in images of the size that the avatar was
    trained at. The sheet, beside the video with the suffix ``.jpg``, shows timesteps of strong
    expression, spread over the sequence; of several variants each row has its name.

    Args:
        avatar: ``results/<subject>``.
        variants: folders of its trained avatars; none as of `eavatar.results.Results.avatar`.
        driver: ``results/<subject>`` of the other person.
        sequence: of the driver.
        smoothing: of the pose, see `low_pass`.
        freeze_gaze: the eyes look straight; else where the driver looks, if that was tracked.
        output: ``.mp4``.
    Returns:
        ``output``.
    Raises:
        UserError: a file is missing or malformed, a person's files are of several trackings, or
            output, smoothing or a folder cannot be.
    """
    if output.suffix != ".mp4" or output.is_dir():
        raise UserError(f"{output} is no name of a video; give a file that ends in .mp4.")
    if not 0 <= smoothing < 1:
        raise UserError(f"--smoothing {smoothing} must be at least 0 and below 1; give another.")
    _check_folders(avatar, variants, driver)
    people = Results.open(avatar), Results.open(driver)
    variants = variants or [people[0].avatar()]
    path = people[1].tracking(sequence)
    own, theirs = (Face.read(results.face) for results in people)
    at_rest, driver_at_rest = Rest.read(people[0], own), Rest.read(people[1], theirs)
    tracking = read_drive(path, theirs.basis.shape[2], neutral=False)
    if freeze_gaze:
        at_rest = replace(at_rest, gaze_size=0)
    moved = retarget(tracking, driver_at_rest, at_rest, expression_map(theirs, own), smoothing)
    strips = _draw_strips(people, variants, sequence, tracking, moved)
    shown = strongest_of_runs(np.linalg.norm(tracking.expression, axis=1), SHEET_COLUMNS)
    kept: dict[int, list[Image]] = {}

    def keep() -> Iterator[Image]:
        progress = tqdm(strips, desc="reenact", unit="frame", total=len(tracking))
        for timestep, tiles in enumerate(progress):
            if timestep in shown:
                kept[timestep] = [to_tile(tile) for tile in tiles]
            yield np.concatenate(tiles, axis=1)

    write_video(output, keep(), RATE, "yuv420p", QUALITY)
    for tiles in kept.values() if len(variants) > 1 else ():
        for folder, tile in zip(variants, tiles[1:], strict=True):
            write_label(tile, folder.name, (GAP, HEADER - 9))
    labels = [f"timestep {timestep}" for timestep in shown]
    rows = list(zip(*(kept[timestep] for timestep in shown), strict=True))
    write_image(output.with_suffix(".jpg"), assemble(labels, rows))
    print(output)
    return output


def _check_folders(avatar: Path, variants: Sequence[Path], driver: Path) -> None:
    """Raise `UserError` for names in place of folders, and a video in place of a driver."""
    for folder in variants:
        if not folder.is_dir():
            raise UserError(f"there is no avatar {folder}; name {avatar}/splat/<variant>.")
    if driver.is_file():
        raise UserError(
            f"{driver} is a file and no driver; make one of a video with: eavatar track-video."
        )


def _draw_strips(
    people: Sequence[Results],
    variants: Sequence[Path],
    sequence: str,
    tracking: Tracking,
    moved: Tracking,
) -> Iterator[list[Image]]:
    """The tiles of each timestep: the driver's frame, then each variant of the avatar.

    They have one size, which videos of half the colours can have: the largest avatar's.
    """
    avatar, driver = people
    known = read_cameras(avatar.cameras)
    chosen = most_frontal(known, moved)
    avatars = [load_avatar(folder) for folder in variants]
    side = max(avatar.settings.image_size for avatar in avatars) // 2 * 2
    players = [
        draw_tracking(Player(avatar), moved, {chosen: known[chosen]}, []) for avatar in avatars
    ]
    frames = driver.capture / sequence / most_frontal(read_cameras(driver.cameras), tracking)
    for timestep, drawn in enumerate(zip(*players, strict=True)):
        recorded = read_rgb(frames / f"{timestep:05d}.jpg")
        yield [to_tile(image, side) for image in (recorded, *(frame.image for frame in drawn))]
