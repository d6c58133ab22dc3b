"""Landmarks by the package face-alignment 1.5.0 (Bulat and Tzimiropoulos 2017), in batches.

The networks are its TWO_HALF_D ones. Read in the package's source: TWO_HALF_D and THREE_D load the
same landmark network, 3DFAN-4, and give the same image points, projections of 3-D positions;
THREE_D only appends a depth from one more network. Many views make that depth needless, and its
weights are read as a pickle, which could run code. TWO_D slides along the contour in side views.

No landmark weights could be had where this was written: the path through the package ran on
its own untrained network, detection on the published BlazeFace weights, all of it without CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from eavatar.backends import LandmarkBackend, WeightFile
from eavatar.device import choose_device
from eavatar.errors import UserError
from eavatar.settings import Settings
from eavatar.weights import checkpoints_folder, open_tensors

if TYPE_CHECKING:
    from face_alignment import FaceAlignment

    from eavatar.arrays import Float32, Float64, Image
    from eavatar.face.landmarks import LandmarkJob

LICENCE = "BSD-3-Clause, of BlazeFace Apache-2.0"
INSTEAD = (
    "set face.landmarks.backend to mediapipe, as config/open.yaml does, or to provided and give "
    "landmarks in the sample sheet or with --landmarks"
)


class FaceAlignmentSettings(Settings):
    """`face.landmarks.face_alignment`."""

    detector: Literal["sfd", "blazeface", "blazeface_back"]
    image_size: int = Field(ge=128, description="side of the image given to the detector, pixels")
    batch_size: int = Field(ge=1, description="images that go through a network at once")


@dataclass(frozen=True)
class _Published:
    """A weight file: its name in the folder of weights, where the package gets it from, and what
    speaks against commercial use."""

    name: str
    url: str
    restriction: str = ""


LANDMARK_WEIGHT = _Published(
    "3DFAN4-7835d9f11d.pth.tar",
    "https://www.adrianbulat.com/downloads/python-fan/3DFAN4-7835d9f11d.pth.tar",
    "trained on 300W-LP, whose images are for research only",
)
BLAZEFACE = "https://github.com/hollance/BlazeFace-PyTorch/blob/master/"


@dataclass(frozen=True)
class Detector:
    """A face detector of the package: its module, its weights, anchors second, and its model."""

    module: str
    weights: tuple[_Published, ...]
    options: tuple[tuple[str, bool], ...] = ()


DETECTORS = {
    "sfd": Detector(
        "sfd",
        (
            _Published(
                "s3fd-619a316812.pth",
                "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
                "trained on WIDER FACE, whose images are for research only",
            ),
        ),
    ),
    "blazeface": Detector(
        "blazeface",
        (
            _Published("blazeface.pth", f"{BLAZEFACE}blazeface.pth?raw=true"),
            _Published("anchors.npy", f"{BLAZEFACE}anchors.npy?raw=true"),
        ),
    ),
    "blazeface_back": Detector(
        "blazeface",
        (
            _Published("blazefaceback.pth", f"{BLAZEFACE}blazefaceback.pth?raw=true"),
            _Published("anchorsback.npy", f"{BLAZEFACE}anchorsback.npy?raw=true"),
        ),
        (("back_model", True),),
    ),
}


def detect_by_face_alignment(job: LandmarkJob) -> tuple[Float32, Float32]:
    """Points (T, C, 68, 2) and confidence (T, C, 68) in every frame of all views."""
    from eavatar.face.landmarks import FaceNetwork, detect_in_views

    own = job.settings.own
    loaded = load_network(own.detector)
    network = FaceNetwork(partial(detect_boxes, loaded), partial(locate_landmarks, loaded))
    return detect_in_views(network, job.frames, own.image_size, own.batch_size)


def weights(settings: FaceAlignmentSettings) -> tuple[WeightFile, ...]:
    """The files of landmark network and detector, whether they exist or not."""
    return _weights_of(settings.detector)


def _weights_of(detector: str) -> tuple[WeightFile, ...]:
    published = (LANDMARK_WEIGHT, *DETECTORS[detector].weights)
    return tuple(
        WeightFile(
            checkpoints_folder() / one.name,
            one.url,
            LICENCE,
            restriction=one.restriction,
            open=open_tensors,
        )
        for one in published
    )


def load(settings: FaceAlignmentSettings) -> FaceAlignment:
    """The networks; see `load_network`."""
    return load_network(settings.detector)


def load_network(detector: str) -> FaceAlignment:
    """Landmark network and detector from the files in `weights_folder`; nothing is downloaded.

    Raises:
        UserError: files are missing, or one cannot be loaded.
    """
    files = _weights_of(detector)
    missing = [file for file in files if not file.path.is_file()]
    if missing:
        listed = ", ".join(f"{file.path.name} ({file.source})" for file in missing)
        raise UserError(
            f"face-alignment's weights are missing: put {listed} into {checkpoints_folder()}, or "
            f"{INSTEAD}."
        )
    from face_alignment import FaceAlignment, LandmarksType

    chosen = DETECTORS[detector]
    # with paths the package loads weights only; without, it would unpickle whatever is there
    keywords = dict(zip(("path_to_detector", "path_to_anchor"), files[1:], strict=False))
    try:
        return FaceAlignment(
            LandmarksType.TWO_HALF_D,
            device=choose_device().type,
            flip_input=False,
            face_detector=chosen.module,
            face_detector_kwargs={
                **{keyword: str(file.path) for keyword, file in keywords.items()},
                **dict(chosen.options),
            },
            compile=False,
        )
    except Exception as error:  # torch's errors have no class in common
        reason = str(error).partition("\n")[0] or type(error).__name__
        names = ", ".join(file.path.name for file in files)
        raise UserError(
            f"one of face-alignment's weight files {names} in {checkpoints_folder()} cannot be "
            f"loaded ({reason}); fetch it again."
        ) from error


def detect_boxes(network: FaceAlignment, images: list[Image]) -> list[Float64]:
    """The faces of each image as (n, 5) left, top, right, bottom, score; the highest score first.

    Args:
        network: as loaded.
        images: RGB of one size (H, W, 3).
    """
    import torch

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    found = [
        np.array(boxes, dtype=np.float64).reshape(-1, 5)
        for boxes in network.face_detector.detect_from_batch(batch)
    ]
    return [boxes[np.argsort(-boxes[:, 4], kind="stable")] for boxes in found]


def locate_landmarks(
    network: FaceAlignment, images: list[Image], boxes: Float64
) -> tuple[Float64, Float64]:
    """Landmarks of one face in each image, whose box is known; any number is one batch.

    Cropping is the package's; its points are ours cut down to whole pixels.

    Args:
        network: as loaded.
        images: N RGB images (H, W, 3), of any sizes.
        boxes: (N, 4) left, top, right, bottom, pixels; they may leave the image.

    Returns:
        (N, 68, 2) pixels, pixel i covers [i, i + 1), and (N, 68) confidence in [0, 1].
    """
    import torch
    from face_alignment import utils

    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sides / 2 - sides[:, 1:] * (0, utils.CENTER_Y_OFFSET)
    scales = sides.sum(axis=1) / network.face_detector.reference_scale
    crops = np.stack(
        [
            utils.crop(image, centre, scale)
            for image, centre, scale in zip(images, centres, scales, strict=True)
        ]
    )
    batch = torch.from_numpy(crops).permute(0, 3, 1, 2).to(network.device, torch.float32) / 255
    with torch.inference_mode():
        heat = network.face_alignment_net(batch)
    heat = (heat[-1] if isinstance(heat, list) else heat).cpu().numpy()
    cells, confidence = read_heat_maps(heat)
    points = centres[:, None] + (cells - 0.5) * (utils.SCALE_FACTOR * scales)[:, None, None]
    return points, confidence.clip(0, 1).astype(np.float64)


def read_heat_maps(heat: NDArray[np.float32]) -> tuple[Float64, NDArray[np.float32]]:
    """The peaks of heat maps (N, 68, S, S): (N, 68, 2) as fractions of a map's side, x first, and
    their heights (N, 68).

    A peak lies a quarter of a cell from the middle of the highest cell towards the higher
    neighbour, along each axis; in a cell at the border it lies in the middle.
    """
    count, maps, side, _ = heat.shape
    row, column = np.divmod(heat.reshape(count, maps, -1).argmax(axis=-1), side)
    inner = (np.minimum(row, column) > 0) & (np.maximum(row, column) < side - 1)
    y, x = row.clip(1, side - 2), column.clip(1, side - 2)
    n, m = np.ogrid[:count, :maps]
    slopes = [
        heat[n, m, y, x + 1] - heat[n, m, y, x - 1],
        heat[n, m, y + 1, x] - heat[n, m, y - 1, x],
    ]
    quarter = 0.25 * np.sign(np.stack(slopes, axis=-1)) * inner[..., None]
    return (np.stack([column, row], axis=-1) + 0.5 + quarter) / side, heat[n, m, row, column]


BACKEND = LandmarkBackend(
    name="face_alignment",
    run=detect_by_face_alignment,
    instead=INSTEAD,
    settings=FaceAlignmentSettings,
    weights=weights,
    load=load,
    packages=("face_alignment",),
    gpu="used",
)
