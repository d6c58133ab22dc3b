"""Masks from BackgroundMattingV2, which compares each frame with the background plate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from eavatar.backends import MattingBackend, WeightFile
from eavatar.settings import Settings

if TYPE_CHECKING:
    from eavatar.arrays import Image
    from eavatar.capture.background_matting import BackgroundMatting
    from eavatar.capture.matting import Shot

RELEASE = "https://github.com/PeterL1n/BackgroundMattingV2/releases"


class BackgroundMattingSettings(Settings):
    """`capture.matte.background_matting_v2`."""

    weights: Path = Field(
        description="TorchScript file of BackgroundMattingV2, of single or half precision"
    )


def matte_by_background_matting(shot: Shot) -> Iterator[Image]:
    """The masks of one camera, in the order of time."""
    from eavatar.capture.background_matting import load_background_matting
    from eavatar.capture.matting import batched, steady

    plate = shot.plate()
    network = load_background_matting(shot.settings.own.weights, len(plate))
    batches = batched(shot.images(), network.batch_size)
    masks = (mask for images in batches for mask in network.masks(images, plate))
    return steady(shot.images(), masks)


def weights(settings: BackgroundMattingSettings) -> tuple[WeightFile, ...]:
    """The one TorchScript file; any of the published ones will do."""
    return (
        WeightFile(
            settings.weights,
            RELEASE,
            "MIT",
            note="any torchscript_*.pth, named in capture.matte.background_matting_v2.weights",
        ),
    )


def load(settings: BackgroundMattingSettings) -> BackgroundMatting:
    """The network, set up for the smallest frames that it takes."""
    from eavatar.capture.background_matting import DIVISOR, load_background_matting

    return load_background_matting(settings.weights, DIVISOR)


BACKEND = MattingBackend(
    name="background_matting_v2",
    run=matte_by_background_matting,
    instead="set capture.matte.backend to plate",
    settings=BackgroundMattingSettings,
    weights=weights,
    load=load,
    gpu="used",
    needs_plates=True,
)
