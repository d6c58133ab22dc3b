"""A head alone: cut out of a frame by its mask, off at the neck, in a square with a margin."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from eavatar import landmark_indices
from eavatar.arrays import Float64, Image
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.transforms import Similarity

MARGIN = 0.1  # of the head's larger side, on either side: what TRELLIS itself crops to
OPAQUE = 0.8  # from this alpha on TRELLIS counts a pixel as the object's


@dataclass(frozen=True)
class Head:
    """Where a head is at one timestep.

    Attributes:
        pose: canonical to world space.
        landmarks: (68, 3) of the neutral face, canonical, dm.
    """

    pose: Similarity
    landmarks: Float64


def make_portrait(image: Image, mask: Image, camera: Camera, head: Head, neck: float) -> Image:
    """The head in a square (S, S, 4) RGBA, uint8, at the frame's own scale.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W) of the person.
        camera: of the frame.
        head: where it is.
        neck: the image ends this far below the chin, dm.

    Raises:
        UserError: the mask has nothing above the neck.
    """
    alpha = keep_largest(mask * cover_above_neck(camera, head, neck))
    rows, columns = np.nonzero(alpha > OPAQUE * 255)
    if len(rows) == 0:
        raise UserError(
            "the mask has nothing above the neck; look at the masks, or set prior.generate.source "
            "to template."
        )
    cut = np.dstack([image, alpha.round().astype(np.uint8)])
    return _square(cut, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def cover_above_neck(camera: Camera, head: Head, neck: float) -> Float64:
    """1 where a camera sees what is above the neck's cut, 0 below it, (H, W).

    The cut is horizontal in canonical space, and a line in the image: where the plane is as far
    away as the neck, which stands below the ears.

    Args:
        camera: of the frame.
        head: where it is.
        neck: the cut is this far below the chin, dm.
    """
    ears = head.landmarks[list(landmark_indices.JAW_ENDS)].mean(axis=0)
    middle = np.array([ears[0], head.landmarks[landmark_indices.CHIN, 1] - neck, ears[2]])
    axis = head.pose.rotation.T @ camera.world_to_camera[2, :3]
    across = np.cross(axis, [0, 1, 0])  # in the plane, and no nearer to the camera on either side
    across /= np.linalg.norm(across)
    points = np.stack([middle, middle + across, middle - np.array([0, 1, 0])])
    (start, along, below), _ = camera.project(head.pose.apply(points))
    normal = np.array([-(along - start)[1], (along - start)[0]])
    normal *= np.sign(normal @ (below - start)) / np.linalg.norm(normal)
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    distance = (columns - start[0]) * normal[0] + (rows - start[1]) * normal[1]
    cover: Float64 = (0.5 - distance).clip(0, 1)
    return cover


def keep_largest(alpha: Float64) -> Float64:
    """Alpha (H, W) of the largest connected part alone: other parts would become geometry."""
    count, labels, areas, _ = cv2.connectedComponentsWithStats((alpha > 0).astype(np.uint8))
    if count < 2:
        return alpha
    largest = 1 + int(areas[1:, cv2.CC_STAT_AREA].argmax())
    return np.where(labels == largest, alpha, 0)


def _square(image: Image, box: tuple[int, int, int, int]) -> Image:
    """A square around a box (left, top, right, bottom), transparent beyond the image."""
    left, top, right, bottom = (int(side) for side in box)
    side = int(np.ceil(max(right - left, bottom - top) * (1 + 2 * MARGIN)))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    height, width = image.shape[:2]
    square = np.zeros((side, side, 4), np.uint8)
    inside = image[max(y, 0) : min(y + side, height), max(x, 0) : min(x + side, width)]
    rows, columns = max(-y, 0), max(-x, 0)
    square[rows : rows + inside.shape[0], columns : columns + inside.shape[1]] = inside
    return square
