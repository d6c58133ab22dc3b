"""Landmarks by MediaPipe's detector, face mesh and eye network, run by OpenCV on the CPU.

Detector: BlazeFace of short range (Bazarevsky et al. 2019), a single-shot detector on 128² pixels.
Mesh: 468 points (Kartynnik et al. 2019) on 192² pixels around an upright face, so that it runs
again upright and centred by the points that it found. Eyes: their contours (Ablavatski et al. 2020)
on 64² pixels around each; the mesh alone hardly follows the lids. All are Apache-2.0. Anchors,
regions and how detections are merged follow the published graphs of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from eavatar import landmark_indices
from eavatar.backends import LandmarkBackend, WeightFile
from eavatar.mediapipe_weights import (
    FACE_DETECTION,
    FACE_LANDMARK,
    IRIS_LANDMARK,
    mediapipe_weights,
    open_network,
)
from eavatar.settings import Settings

if TYPE_CHECKING:
    from eavatar.arrays import Float32, Float64, Image
    from eavatar.face.landmarks import LandmarkJob

DETECTOR_SIZE, MESH_SIZE, EYE_SIZE = 128, 192, 64  # pixels
# (cells along a side, anchors in each): layers of strides 8, 16, 16 and 16 with two anchors each.
ANCHOR_GRIDS = ((16, 2), (8, 6))
MIN_SCORE = 0.5  # of a face
SAME_FACE = 0.3  # intersection over union from which two boxes are one face
PASSES = 3  # of the mesh; heads tilted by 30 degrees then have the landmarks of upright ones
MARGIN = 1.5  # side of the mesh's region / longer side of the face
EYE_MARGIN = 2.3  # side of an eye's region / width of the eye
EYE_CORNERS = (33, 263)  # of the mesh: the outer ones, right and left
# The points of the mesh that are the iBUG-68 landmarks, as users of it have published them
# (github.com/yerfor/GeneFacePlusPlus and others). Where their lists differ, the points are those
# nearer to the true landmarks of two rendered heads.
IBUG_68 = (
    127, 234, 132, 58, 172, 150, 149, 148, 152, 377, 378, 379, 397, 288, 361, 454, 356, 70, 63, 105,
    66, 107, 336, 296, 334, 293, 300, 6, 197, 5, 4, 98, 97, 2, 326, 327, 33, 160, 158, 133, 153,
    144, 362, 385, 387, 263, 373, 380, 61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81,
    13, 311, 308, 402, 14, 178,
)  # fmt: skip


@dataclass(frozen=True)
class Eye:
    """An eye, for the network that knows right eyes.

    Attributes:
        corners: points of the mesh, from the subject's right to left.
        contour: points of the network that are the eye's six landmarks, in iBUG order.
        mirrored: it is a left one.
    """

    corners: tuple[int, int]
    contour: tuple[int, ...]
    mirrored: bool


EYES = (Eye((33, 133), (0, 11, 13, 8, 5, 3), False), Eye((362, 263), (8, 13, 11, 0, 3, 5), True))


class MediapipeSettings(Settings):
    """`face.landmarks.mediapipe`."""

    weights: Path = Field(description="folder of the networks; `eavatar unpack-weights` fills it")
    image_size: int = Field(ge=128, description="side of the image that faces are cut out of")
    batch_size: int = Field(ge=1, description="images that are read, and faces located, at once")


@dataclass(frozen=True)
class Networks:
    """OpenCV's networks of the detector, of the mesh and of an eye."""

    detection: Any
    mesh: Any
    eye: Any


@dataclass(frozen=True)
class Regions:
    """Turned squares in images, a network's input.

    Attributes:
        centres: (N, 2) pixels.
        sides: (N,) pixels.
        axes: (N, 2) unit vector from the right of the face to its left: the square's x axis.
    """

    centres: Float64
    sides: Float64
    axes: Float64

    def to_image(self) -> Float64:
        """(N, 2, 3) affine maps of positions in a square, from 0 to 1, to pixels."""
        x, y = self.axes, self.axes[:, ::-1] * (-1, 1)
        turn = np.stack([x, y], axis=-1) * self.sides[:, None, None]
        return np.concatenate([turn, (self.centres - turn.sum(axis=-1) / 2)[..., None]], axis=-1)

    def cut_out(self, images: list[Image], size: int) -> list[Image]:
        """A square of ``size`` pixels of each image."""
        import cv2

        crops = []
        for image, to_image in zip(images, self.to_image(), strict=True):
            pixels = to_image / (size, size, 1)
            pixels[:, 2] += pixels[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV counts from their middles
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            crops.append(cv2.warpAffine(image, pixels, (size, size), flags=flags))
        return crops

    def place(self, points: Float64) -> Float64:
        """(N, P, 2) pixels of positions (N, P, 2) in the squares, from 0 to 1."""
        homogeneous = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=-1)
        return np.asarray(homogeneous @ self.to_image().transpose(0, 2, 1))


def detect_by_mediapipe(job: LandmarkJob) -> tuple[Float32, Float32]:
    """Points (T, C, 68, 2) and confidence (T, C, 68) in every frame of all views."""
    from eavatar.face.landmarks import FaceNetwork, detect_in_views

    own = job.settings.own
    networks = load(own)
    network = FaceNetwork(partial(detect_boxes, networks), partial(locate_landmarks, networks))
    return detect_in_views(network, job.frames, own.image_size, own.batch_size)


def weights(settings: MediapipeSettings) -> tuple[WeightFile, ...]:
    """The files of the networks, whether they exist or not."""
    return mediapipe_weights(settings.weights, (FACE_DETECTION, FACE_LANDMARK, IRIS_LANDMARK))


def load(settings: MediapipeSettings) -> Networks:
    """The networks; `UserError` if one is missing or damaged."""
    return Networks(*(open_network(file.path) for file in weights(settings)))


# --- faces --------------------------------------------------------------------------------------


def detect_boxes(networks: Networks, images: list[Image]) -> list[Float64]:
    """The faces of each image as (n, 5) left, top, right, bottom, score; the highest score first.

    Args:
        networks: as loaded.
        images: square RGB images (S, S, 3).
    """
    import cv2

    found = []
    for image in images:  # the detector takes one at a time
        small = cv2.resize(image, (DETECTOR_SIZE, DETECTOR_SIZE), interpolation=cv2.INTER_AREA)
        scores = _run(networks.detection, "classificators", [small], (-1, 1))[0]
        boxes = _run(networks.detection, "regressors", [small], (-1, 1)).reshape(len(scores), -1)
        faces = merge_boxes(*decode_boxes(scores, boxes[:, :4]))
        found.append(faces * (*[len(image)] * 4, 1))
    return found


def _run(
    network: Any, output: str, images: list[Image], span: tuple[float, float] = (0, 1)
) -> Float64:
    """One output (N, M) of a network for N images of its size.

    Args:
        network: of OpenCV, which runs all of it for each output.
        output: its name.
        images: RGB.
        span: the network's black and white.
    """
    import cv2

    scale = (span[1] - span[0]) / 255
    network.setInput(cv2.dnn.blobFromImages(images, scale, mean=[-span[0] / scale] * 3))
    return np.asarray(network.forward(output).reshape(len(images), -1), dtype=np.float64)


def _sigmoid(logits: Float64) -> Float64:
    return 1 / (1 + np.exp(-logits))


def anchors() -> Float64:
    """(896, 2) the middles of the detector's anchors, fractions of the image's side."""
    grids = []
    for cells, count in ANCHOR_GRIDS:
        middles = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
        grids.append(np.repeat(grid, count, axis=0))
    return np.concatenate(grids)


def decode_boxes(scores: Float64, boxes: Float64) -> tuple[Float64, Float64]:
    """The boxes (n, 4) of the anchors that see a face, fractions of the side, and scores (n,).

    Args:
        scores: (896,) before the sigmoid.
        boxes: (896, 4) middle, relative to the anchor's, and size; pixels of the detector's input.
    """
    certain = scores > np.log(MIN_SCORE / (1 - MIN_SCORE))
    middles, sizes = np.hsplit(boxes[certain] / DETECTOR_SIZE, 2)
    middles += anchors()[certain]
    corners = np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=1)
    return corners, _sigmoid(scores[certain])


def merge_boxes(boxes: Float64, scores: Float64) -> Float64:
    """(m, 5) boxes and scores, in which overlapping boxes have become their weighted mean.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,), the weights; a merged box keeps the highest.
    """
    merged = []
    left = np.argsort(-scores, kind="stable")
    while len(left):
        same = _overlaps(boxes[left[0]], boxes[left]) > SAME_FACE
        same[0] = True
        group = left[same]
        mean = np.average(boxes[group], axis=0, weights=scores[group])
        merged.append([*mean, scores[group[0]]])
        left = left[~same]
    return np.array(merged).reshape(-1, 5)


def _overlaps(box: Float64, boxes: Float64) -> Float64:
    """(n,) intersection over union of a box (4,) and each of others (n, 4)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    both = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.asarray(shared / (both - shared))


# --- landmarks ----------------------------------------------------------------------------------


def locate_landmarks(
    networks: Networks, images: list[Image], boxes: Float64
) -> tuple[Float64, Float64]:
    """Landmarks of one face in each image, whose box is known; any number is one batch.

    Args:
        networks: as loaded.
        images: N RGB images (H, W, 3), of any sizes.
        boxes: (N, 4) left, top, right, bottom, pixels; they may leave the image.

    Returns:
        (N, 68, 2) pixels, pixel i covers [i, i + 1), and (N, 68) confidence in [0, 1], the same for
        all landmarks of a face.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    upright = np.tile([1.0, 0.0], (len(boxes), 1))
    regions = Regions(boxes[:, :2] + sizes / 2, MARGIN * sizes.max(axis=1), upright)
    for _ in range(PASSES):
        crops = regions.cut_out(images, MESH_SIZE)
        mesh = _run(networks.mesh, "conv2d_21", crops).reshape(len(images), -1, 3)
        points = regions.place(mesh[..., :2] / MESH_SIZE)
        regions = surround(points)
    certainty = _sigmoid(_run(networks.mesh, "conv2d_31", crops))
    landmarks = points[:, IBUG_68]
    landmarks[:, landmark_indices.EYES] = locate_eyes(networks, images, points)
    return landmarks, np.repeat(certainty, len(IBUG_68), axis=1)


def surround(points: Float64) -> Regions:
    """The regions, turned as the line of the eyes is, around points (N, 468, 2) of the mesh."""
    right, left = (points[:, corner] for corner in EYE_CORNERS)
    axes = (left - right) / np.linalg.norm(left - right, axis=1, keepdims=True).clip(1e-9)
    turn = np.stack([axes, axes[:, ::-1] * (-1, 1)], axis=-1)
    along = points @ turn
    low, high = along.min(axis=1), along.max(axis=1)
    centres = np.einsum("nij,nj->ni", turn, (low + high) / 2)
    return Regions(centres, MARGIN * (high - low).max(axis=1), axes)


def locate_eyes(networks: Networks, images: list[Image], mesh: Float64) -> Float64:
    """(N, 12, 2) pixels of the landmarks of both eyes, where points (N, 468, 2) show them."""
    found = []
    for eye in EYES:
        right, left = (mesh[:, corner] for corner in eye.corners)
        widths = np.linalg.norm(left - right, axis=1)
        axes = (left - right) / widths[:, None].clip(1e-9)
        regions = Regions((right + left) / 2, EYE_MARGIN * widths, axes)
        crops = regions.cut_out(images, EYE_SIZE)
        if eye.mirrored:
            crops = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
        contours = _run(networks.eye, "output_eyes_contours_and_brows", crops)
        points = contours.reshape(len(images), -1, 3)[:, eye.contour, :2] / EYE_SIZE
        if eye.mirrored:
            points = points * (-1, 1) + (1, 0)
        found.append(regions.place(points))
    return np.concatenate(found, axis=1)


BACKEND = LandmarkBackend(
    name="mediapipe",
    run=detect_by_mediapipe,
    instead="set face.landmarks.backend to provided or face_alignment",
    settings=MediapipeSettings,
    weights=weights,
    load=load,
)
