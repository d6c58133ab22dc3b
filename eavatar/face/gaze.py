"""Where the tracked eyes look, from the images alone: yaw and pitch of a timestep, for both eyes.

1. An eyeball is a sphere behind the lids' landmarks. Points on its front, still in the head, follow
   the head's pose; each gets the robust mean of the colours in the cameras that see it. Those
   beyond the lids, where the landmarks of the timestep have them, do not count.
2. An eye looks the same all about its axis. So brightness is a profile over the angle to the gaze,
   the same for all timesteps; gaze and profile are found in turn, from the training timesteps and
   beginning with a dark iris on white. Light is a factor and an offset of each timestep and eye.
3. With the profile and each eye's direction at rest learned, every timestep has the most probable
   gaze of both eyes together, by itself; a held-out one is measured as any other and contributes
   nothing. Where both eyes are closed, it is interpolated in time.

The gaze is relative to rest, the median of the training timesteps, as lids tell a sphere's centre
only to a millimetre, five degrees. Letters: T timesteps, N points on an eye, G gazes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from eavatar.arrays import Bool, Float64
from eavatar.avatar.base_motion import EYEBALL, Eyeball
from eavatar.errors import UserError
from eavatar.face.colours import TrackedFace, mean_colours, measure_sequences
from eavatar.face.morphable import MorphableModel
from eavatar.face.refine import read_sequence
from eavatar.io import Tracking, read_sequences
from eavatar.landmark_indices import LEFT_EYE, RIGHT_EYE
from eavatar.settings import GazeSettings
from eavatar.threads import make_pool

logger = logging.getLogger(__name__)

EYES = RIGHT_EYE, LEFT_EYE


def _grid(yaw: float, pitch: float, step: float) -> Float64:
    """(rows, columns, 2) yaw and pitch up to so many degrees, radians."""
    axes = (np.arange(-limit, limit + step / 2, step) for limit in (yaw, pitch))
    angles: Float64 = np.radians(np.stack(np.meshgrid(*axes), axis=-1))
    return angles


POINTS = _grid(72, 45, 3).reshape(-1, 2)  # of an eyeball: 0.6 mm apart
GAZES = _grid(40, 30, 2)  # that are tried; nobody turns the eyes farther for long
MARGIN = 0.1  # of an eyeball's radius inside the lids: lashes, and what landmarks are off by
MIN_SEEN = 60  # points of 0.4 mm²: an eye's opening has 300 to 500
BIN = np.radians(3)  # of the profile
BINS = 31
MAX_UNEXPLAINED = 1 / 3  # of the variance of an open eye's brightness, which leaves up to 0.25
IRIS = np.radians(29)  # 11.7 mm wide on a ball of 24 mm; adults differ by 5 %
NOISE = 0.05  # deviation of a point's brightness, of a range of 1
ALIKE = 5  # neighbouring points err alike
WIDTH = np.radians(15)  # deviation of the gaze, as prior
ROUNDS = 4
MIN_CONTRAST = 0.01  # deviation of the profile over the points seen, below which light is not told


@dataclass(frozen=True)
class Eyes:
    """What both eyes look like at T timesteps.

    Attributes:
        brightness: (T, 2, N) in [0, 1] at `POINTS`, the mean over the cameras.
        seen: (T, 2, N) 1 where it is known and between the lids, else 0.
    """

    brightness: Float64
    seen: Float64

    def __len__(self) -> int:
        return len(self.seen)

    def count(self, eye: int) -> Float64:
        """(T,) points that are seen of an eye."""
        total: Float64 = self.seen[:, eye].sum(axis=1)
        return total

    def variance(self, eye: int) -> Float64:
        """(T,) of the brightness of an eye, 0 where nothing is seen."""
        seen, found, count = self.seen[:, eye], self.brightness[:, eye], self.count(eye).clip(1)
        mean, squares = ((seen * found**power).sum(axis=1) / count for power in (1, 2))
        spread: Float64 = (squares - mean**2).clip(0)
        return spread


@dataclass(frozen=True)
class EyeModel:
    """What the training timesteps tell of a person's eyes.

    Attributes:
        profile: (`BINS`,) brightness by the angle to the gaze, in steps of `BIN`.
        rest: (2, 2) yaw and pitch of each eye at rest, radians.
    """

    profile: Float64
    rest: Float64


def measure_gaze(
    settings: GazeSettings, morphable_model: Path, capture: Path, face: Path, output: Path
) -> Path:
    """Give the tracking of every sequence its gaze, or none if not enabled.

    Args:
        settings: whether to measure at all.
        morphable_model: the file that the fit used.
        capture: ``results/<subject>/capture`` with sequences, frames, masks and cameras.
        face: folder with ``identity.npz``, ``neutral.ply``, ``expression_basis.npz`` and
            ``tracking/<sequence>.npz``.
        output: folder; receives the same, the tracking with its gaze.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or no training timestep shows an open eye.
    """

    def measure(model: MorphableModel, tracks: dict[str, Tracking]) -> dict[str, Tracking]:
        return measure_tracks(settings, model, capture, face, tracks)

    return measure_sequences(
        measure if settings.enabled else None, morphable_model, capture, face, output
    )


def measure_tracks(
    settings: GazeSettings,
    model: MorphableModel,
    capture: Path,
    face: Path,
    tracks: dict[str, Tracking],
) -> dict[str, Tracking]:
    """The tracking of all sequences with its gaze.

    Args:
        settings: size of the images.
        model: that the fit used.
        capture: ``results/<subject>/capture``.
        face: folder with ``identity.npz`` and ``neutral.ply``.
        tracks: by sequence.

    Raises:
        UserError: as `measure_gaze`.
    """
    tracked = TrackedFace.read(settings.image_size, model, capture, face)
    eyes = {name: read_eyes(tracked, name, track) for name, track in tracks.items()}
    learned = learn_eyes([eyes[name] for name in read_sequences(capture / "sequences.json").train])
    return {
        name: replace(track, gaze=find_gaze(learned, eyes[name]).astype(np.float32))
        for name, track in tracks.items()
    }


# --- what the eyes look like --------------------------------------------------------------------


def read_eyes(face: TrackedFace, name: str, track: Tracking) -> Eyes:
    """Both eyes at a sequence's timesteps, each by itself.

    Args:
        face: with capture and cameras.
        name: of the sequence.
        track: of the sequence.
    """
    sequence, count, directions = read_sequence(face.capture, name), len(track), to_vectors(POINTS)
    landmarks = torch.from_numpy(face.landmarks)
    centres = [Eyeball.of(landmarks[ring]).centre.numpy() for ring in EYES]
    balls = np.concatenate([centre + EYEBALL * directions for centre in centres])

    def read(timestep: int) -> tuple[Float64, Bool]:
        pose = face.pose(track, timestep)
        landmarks = pose.bring_back(track.landmarks[timestep].astype(np.float64))
        normals = np.concatenate([directions, directions]) @ pose.turn.T
        vertices = face.vertices(track, timestep)
        places = pose.place(balls)
        colours, seen = mean_colours(face, sequence, timestep, vertices, places, normals)
        between = [
            between_lids(landmarks[ring] - centre)
            for ring, centre in zip(EYES, centres, strict=True)
        ]
        return colours.mean(axis=1).reshape(2, -1), seen.reshape(2, -1) & np.stack(between)

    with make_pool() as pool:
        found = list(tqdm(pool.map(read, range(count)), f"gaze in {name}", count))
    brightness, seen = zip(*found, strict=True)
    return Eyes(np.stack(brightness), np.stack(seen).astype(np.float64))


def between_lids(ring: Float64) -> Bool:
    """Which of `POINTS` (N,) lie between the lids.

    Args:
        ring: (6, 3) landmarks of an eye from the centre of its ball, canonical.
    """
    # Both seen from the centre, on a plane before it.
    corners, points = (xyz[:, :2] / xyz[:, 2:] for xyz in (ring, to_vectors(POINTS)))
    edges = np.roll(corners, -1, axis=0) - corners
    inwards = np.stack([-edges[:, 1], edges[:, 0]], axis=1)
    inwards /= np.linalg.norm(inwards, axis=1, keepdims=True)
    inwards *= np.sign(((corners.mean(axis=0) - corners) * inwards).sum(axis=1))[:, None]
    inside: Bool = (points @ inwards.T - (corners * inwards).sum(axis=1) > MARGIN).all(axis=1)
    return inside


def to_vectors(angles: Float64) -> Float64:
    """Unit vectors (…, 3) of yaw and pitch (…, 2); straight is along z, the front of the head."""
    yaw, pitch = angles[..., 0], angles[..., 1]
    return np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)


# --- where they look ----------------------------------------------------------------------------


def learn_eyes(training: Sequence[Eyes]) -> EyeModel:
    """Profile and rest of the eyes of the training timesteps.

    Raises:
        UserError: in none of them an eye is open.
    """
    eyes = Eyes(
        np.concatenate([each.brightness for each in training]),
        np.concatenate([each.seen for each in training]),
    )
    open_eyes = eyes.seen.sum(axis=2) >= MIN_SEEN
    if not open_eyes.any(axis=0).all():
        raise UserError(
            "an eye is open in no training timestep, so that its gaze cannot be measured; check "
            "landmarks and masks, or switch face.gaze off."
        )
    tried = GAZES.reshape(-1, 2)
    profile = np.where(np.arange(BINS) * BIN < IRIS, 0.2, 0.6)
    for _ in range(ROUNDS):
        lefts = (misfit(profile, eyes, eye, tried) for eye in range(2))
        costs = [cost(eyes, eye, left) + prior(tried) for eye, left in enumerate(lefts)]
        single = np.stack([tried[each.argmin(axis=1)] for each in costs], axis=1)
        profile = _mean_profile(eyes, single, open_eyes, profile)
    rest = [np.median(single[open_eyes[:, eye], eye], axis=0) for eye in range(2)]
    logger.info("eyes at rest look to %s degrees (yaw, pitch)", np.degrees(rest).round().tolist())
    return EyeModel(profile, np.stack(rest))


def _mean_profile(eyes: Eyes, gazes: Float64, chosen: Bool, before: Float64) -> Float64:
    """The mean brightness by the angle to the gaze, or what was before where nothing is seen.

    Args:
        eyes: T timesteps.
        gazes: (T, 2, 2) of each eye.
        chosen: (T, 2) which eyes count.
        before: (`BINS`,).
    """
    cosines = np.einsum("ted,nd->ten", to_vectors(gazes), to_vectors(POINTS))
    bins = np.round(np.arccos(cosines.clip(-1, 1)) / BIN).astype(int).clip(0, BINS - 1).ravel()
    weights = (eyes.seen * chosen[..., None]).ravel()
    total, count = (
        np.bincount(bins, values, BINS) for values in (weights * eyes.brightness.ravel(), weights)
    )
    return np.where(count > 0, total / count.clip(1e-9), before)


def misfit(profile: Float64, eyes: Eyes, eye: int, gazes: Float64) -> Float64:
    """(T, G) variance of brightness that gazes (G, 2) of one eye leave, under the light that suits
    each best.

    Args:
        profile: (`BINS`,).
        eyes: T timesteps.
        eye: 0 the right, 1 the left.
        gazes: yaw and pitch of this eye, radians.
    """
    angles = np.arccos((to_vectors(gazes) @ to_vectors(POINTS).T).clip(-1, 1))
    expected = np.interp(angles, BIN * np.arange(BINS), profile).T
    seen, found = eyes.seen[:, eye], eyes.brightness[:, eye]
    count = seen.sum(axis=1, keepdims=True).clip(1)
    mean, middle = (seen * found).sum(axis=1, keepdims=True) / count, seen @ expected / count
    spread = seen @ expected**2 / count - middle**2
    common = (seen * found) @ expected / count - mean * middle
    factor = (common / (spread + MIN_CONTRAST**2)).clip(0)
    left: Float64 = eyes.variance(eye)[:, None] - 2 * factor * common + factor**2 * spread
    return left


def cost(eyes: Eyes, eye: int, left: Float64) -> Float64:
    """(T, G) negative log likelihood of what `misfit` leaves."""
    total: Float64 = eyes.count(eye)[:, None] * left / (2 * ALIKE * NOISE**2)
    return total


def prior(gazes: Float64) -> Float64:
    """(G,) negative log probability of gazes (G, 2)."""
    total: Float64 = 0.5 * np.square(gazes / WIDTH).sum(axis=-1)
    return total


def find_gaze(model: EyeModel, eyes: Eyes) -> Float64:
    """The most probable gaze (T, 2) of both eyes, relative to rest, radians."""
    tried = GAZES.reshape(-1, 2)
    total, told = np.tile(prior(tried), (len(eyes), 1)), np.zeros(len(eyes), bool)
    for eye in range(2):
        left = misfit(model.profile, eyes, eye, tried + model.rest[eye])
        own = cost(eyes, eye, left)
        # Lids that are closed where the tracking has them open are explained by no likely gaze.
        least = np.take_along_axis(left, (own + prior(tried)).argmin(axis=1)[:, None], axis=1)[:, 0]
        shown = (least <= MAX_UNEXPLAINED * eyes.variance(eye)) & (eyes.count(eye) >= MIN_SEEN)
        total += shown[:, None] * own
        told |= shown
    gaze = _refine_minimum(total.reshape(-1, *GAZES.shape[:2]))
    if not told.any():
        return np.zeros_like(gaze)
    times = np.arange(len(gaze))
    return np.stack([np.interp(times, times[told], gaze[told, axis]) for axis in range(2)], axis=1)


def _refine_minimum(costs: Float64) -> Float64:
    """(T, 2) where parabolas through the least of costs (T, rows, columns) and its neighbours on
    `GAZES` are least."""
    times, (rows, columns) = np.arange(len(costs)), costs.shape[1:]
    row, column = np.divmod(costs.reshape(len(costs), -1).argmin(axis=1), columns)
    row, column = row.clip(1, rows - 2), column.clip(1, columns - 2)
    middle = costs[times, row, column]
    gaze = GAZES[row, column].copy()
    for axis, (down, right) in enumerate(((0, 1), (1, 0))):
        before = costs[times, row - down, column - right]
        after = costs[times, row + down, column + right]
        curvature = (before + after - 2 * middle).clip(1e-9)
        step = ((before - after) / (2 * curvature)).clip(-1, 1)
        gaze[:, axis] += step * (GAZES[1, 1, axis] - GAZES[0, 0, axis])
    return gaze
