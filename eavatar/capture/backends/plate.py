"""Masks from the difference to the background plate, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from typing import TYPE_CHECKING

from eavatar.backends import MattingBackend

if TYPE_CHECKING:
    from eavatar.arrays import Image
    from eavatar.capture.matting import Shot


def matte_by_plate(shot: Shot) -> Iterator[Image]:
    """The masks of one camera, in the order of time."""
    import numpy as np

    from eavatar.capture.matting import steady
    from eavatar.capture.plate import Plate, mask_from_plate

    if not shot.visible.any():  # a view that was marked as of no use: empty masks have failed
        return (np.zeros_like(shot.visible) for _ in shot.timesteps)
    plate = Plate.of(shot.plate(), shot.visible)
    images, again = tee(shot.images())  # decoded once
    return steady(images, (mask_from_plate(image, plate) for image in again))


BACKEND = MattingBackend(
    name="plate",
    run=matte_by_plate,
    instead="set capture.matte.backend to rembg or provided",
    needs_plates=True,
)
