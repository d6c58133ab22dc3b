"""The person's outline in a few frames, as seen from canonical space: what a head must stay within.

The fitted face says where a face is. The masks say where the whole head ends, hair included, from
all sides that cameras see: an aligned prior may not stick out of them, and should fill them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from eavatar.arrays import Bool, Float64, Image, Int64
from eavatar.cameras import Camera
from eavatar.data.images import read_grey
from eavatar.errors import UserError
from eavatar.io import read_cameras
from eavatar.landmark_indices import CHIN, JAW_ENDS
from eavatar.prior.portrait import Head, cover_above_neck
from eavatar.prior.timesteps import read_timesteps
from eavatar.prior.views import directions

# Lengths in canonical units (dm).
FRAMES = 12  # more from the same sides tell little more
CALM = 0.2  # fraction of the timesteps, those of least expression, of which frames are chosen
WINDOW = 4.0  # side of what is kept of a frame around the head
SIDE = 128  # of that, pixels: 3 mm each
PIXEL = WINDOW / SIDE  # dm
MAX_DISTANCE = 0.3  # at which distances are clipped


@dataclass(frozen=True)
class Silhouette:
    """A frame's mask around the head. S is `SIDE`, a place is column and row of a pixel.

    Attributes:
        projection: (3, 4) canonical to homogeneous pixels of the maps below.
        axes: (2, 3) a pixel to the right and down at the head's depth, canonical.
        outside: (S, S) distance to the person, clipped, dm; 0 on the person and beyond the sensor.
        nearest: (S, S, 2) place of the person that is nearest to each pixel.
        contour: (P, 2) places along the person's outline above the chin.
    """

    projection: Float64
    axes: Float64
    outside: Float64
    nearest: Int64
    contour: Int64

    def project(self, points: Float64) -> tuple[Float64, Int64]:
        """Points (N, 3), canonical, to pixels (N, 2) and to the nearest places of the maps."""
        seen = points @ self.projection[:, :3].T + self.projection[:, 3]
        pixels = seen[:, :2] / seen[:, 2:]
        return pixels, pixels.astype(np.int64).clip(0, SIDE - 1)


@dataclass(frozen=True)
class Silhouettes:
    """What all chosen frames say of a head.

    Attributes:
        views: of them; the first few also look from all sides.
        floor: height of the chin: other clothes and shoulders below it do not count, canonical.
    """

    views: Sequence[Silhouette]
    floor: float

    def first(self, count: int) -> Silhouettes:
        """The first ``count`` views alone."""
        return Silhouettes(self.views[:count], self.floor)

    def confining(self) -> Silhouettes:
        """The same without outlines to fill: points may be anywhere within the masks."""
        empty = np.zeros((0, 2), np.int64)
        return Silhouettes([replace(view, contour=empty) for view in self.views], self.floor)

    def protrusion(self, points: Float64) -> float:
        """Mean distance by which points (N, 3) above the chin are outside the masks, dm."""
        points = points[points[:, 1] > self.floor]
        if len(points) == 0:
            return MAX_DISTANCE
        places = ((view.outside, view.project(points)[1]) for view in self.views)
        return float(np.mean([outside[_index(at)].mean() for outside, at in places]))

    def gap(self, points: Float64) -> float:
        """Mean distance of the outlines to where points (N, 3) are in the image, clipped, dm."""
        distances = []
        for view in self.views:
            _, places = view.project(points)
            distances.append(_nearest(places, view.contour)[0].mean() if len(view.contour) else 0)
        return float(np.mean(distances))

    def pulls(self, points: Float64) -> tuple[Int64, Float64]:
        """Which points (N, 3) the outlines move, (P,), and by how much, (P, 3), canonical.

        Those that are outside go to the nearest pixel of the person; each pixel of an outline draws
        the point that is nearest to it in the image.
        """
        chosen, offsets = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
        above = points[:, 1] > self.floor
        for view in self.views:
            pixels, places = view.project(points)
            outside = np.flatnonzero(above & (view.outside[_index(places)] > 0))
            who = np.concatenate([outside, _nearest(places, view.contour)[1]])
            goals = np.concatenate([view.nearest[_index(places[outside])], view.contour])
            chosen.append(who)
            offsets.append((goals + 0.5 - pixels[who]) @ view.axes)
        return np.concatenate(chosen), np.concatenate(offsets)


def read_silhouettes(capture: Path, face: Path) -> Silhouettes:
    """The outlines in calm training frames from directions as different as there are.

    Args:
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.

    Raises:
        UserError: a file is missing or malformed, or all masks have failed.
    """
    cameras = read_cameras(capture / "cameras.json")
    found = read_timesteps(capture, face, tuple(cameras))
    centres = np.stack([camera.centre for camera in cameras.values()])
    seen = directions(centres, found.rotation, found.translation)
    strength = (found.expression**2).mean(axis=1)
    views = []
    for step, camera in choose_frames(seen, found.usable, strength):
        (sequence, timestep), serial = found.keys[step], list(cameras)[camera]
        mask = read_grey(capture / "masks" / sequence / serial / f"{timestep:05d}.png")
        sensor = read_grey(capture / "visible" / f"{serial}.png", "calibrate")
        view = outline(mask, sensor, cameras[serial], found.head(step))
        views += [view] if view else []
    if not views:
        raise UserError(
            f"no mask in {capture / 'masks'} shows a person where the head was tracked; look at "
            "the masks and at the tracking in the report."
        )
    return Silhouettes(views, float(found.identity.landmarks[CHIN, 1]))


def choose_frames(seen: Float64, usable: Bool, strength: Float64) -> list[tuple[int, int]]:
    """Up to `FRAMES` frames as (timestep, camera): the calm ones that look from all sides.

    The first is of the calmest timestep; each further one looks from where the angle to those
    before it is largest.

    Args:
        seen: (T, C, 3) directions to the cameras in the head's axes.
        usable: (T, C) whose masks have not failed.
        strength: (T,) of the expression.
    """
    calm = strength.argsort()[: int(np.ceil(CALM * len(strength)))]
    steps, cameras = np.nonzero(usable[calm])
    towards = seen[calm[steps], cameras]
    chosen = [0]
    nearest = towards @ towards[0]
    for _ in range(min(FRAMES, len(towards)) - 1):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, towards @ towards[chosen[-1]])
    return [(int(calm[steps[frame]]), int(cameras[frame])) for frame in chosen]


def outline(mask: Image, sensor: Image, camera: Camera, head: Head) -> Silhouette | None:
    """The person's outline around the head in one frame; none if the head is not in it.

    Args:
        mask: (H, W) of the person.
        sensor: (H, W) not zero where the image is of the sensor.
        camera: of the frame.
        head: where it is.
    """
    middle, depth = camera.project(head.pose.apply(head.landmarks[list(JAW_ENDS)].mean(axis=0)))
    if depth <= 0:
        return None
    focal = np.sqrt(np.linalg.det(camera.intrinsics[:2, :2]))
    side = int(np.ceil(WINDOW * head.pose.scale * focal / depth))
    left, top = np.floor(middle - side / 2).astype(int).tolist()
    small = camera.crop(left, top, side, side).resize(SIDE, SIDE)
    person = _window(mask, left, top, side) > 127
    seen = _window(sensor, left, top, side) > 127
    above = cover_above_neck(small, head, 0.0) > 0.5
    # A person who reaches the end of the sensor has no outline there.
    inside = cv2.erode((person | ~seen).astype(np.uint8), np.ones((3, 3)), borderValue=1) > 0
    contour = _places(person & above & ~inside)
    if len(contour) == 0:
        return None
    places = _places(person)
    distance, nearest = _nearest(places, _places(np.ones_like(person)))
    to_camera = small.world_to_camera @ head.pose.matrix
    return Silhouette(
        small.intrinsics @ to_camera[:3],
        PIXEL * to_camera[:2, :3] / head.pose.scale,
        np.where(seen, distance.reshape(SIDE, SIDE), 0),
        places[nearest].reshape(SIDE, SIDE, 2),
        contour,
    )


def _window(image: Image, left: int, top: int, side: int) -> Image:
    """A square of an image, black beyond it, at `SIDE` pixels."""
    square = np.zeros((side, side), np.uint8)
    part = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    row, column = max(-top, 0), max(-left, 0)
    square[row : row + part.shape[0], column : column + part.shape[1]] = part
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _places(chosen: Bool) -> Int64:
    """(N, 2) columns and rows of the chosen pixels (S, S), row by row."""
    return np.argwhere(chosen)[:, ::-1]


def _index(places: Int64) -> tuple[Int64, Int64]:
    """What to index a map with at places (N, 2)."""
    return places[:, 1], places[:, 0]


def _nearest(places: Int64, goals: Int64) -> tuple[Float64, Int64]:
    """Distances (M,) of pixels at goals (M, 2) to the nearest of places (N, 2), dm, and which."""
    free = np.ones((SIDE, SIDE), np.uint8)
    free[_index(places)] = 0
    pixels, labels = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owners = np.zeros(len(places) + 1, np.int64)
    owners[labels[_index(places)]] = np.arange(len(places))
    distances: Float64 = (PIXEL * pixels[_index(goals)].astype(np.float64)).clip(max=MAX_DISTANCE)
    return distances, owners[labels[_index(goals)]]
