"""Masks from MediaPipe's segmentation of a person, run by OpenCV on the CPU; no plates needed.

The network gives 256² soft masks. They are brought to the frame's edges by a guided filter (He, Sun
and Tang 2013): in every window the mask becomes a linear function of the colours. Hair finer than
a few pixels of the network, and clothes in the colours of the set, are beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from eavatar.backends import MattingBackend, WeightFile
from eavatar.mediapipe_weights import SELFIE_SEGMENTATION, mediapipe_weights, open_network
from eavatar.settings import Settings

if TYPE_CHECKING:
    from eavatar.arrays import Float32, Image
    from eavatar.capture.matting import Shot

SIZE = 256  # pixels of the network's input and of its mask
RADIUS = 4  # of the guided filter's windows, pixels of the network's mask
SMOOTHNESS = 1e-4  # colour variance, of values from 0 to 1, below which a window is smooth


class SelfieSettings(Settings):
    """`capture.matte.selfie`."""

    weights: Path = Field(description="folder of the network; `eavatar unpack-weights` fills it")


def matte_by_selfie(shot: Shot) -> Iterator[Image]:
    """The masks of one camera, in the order of time."""
    from eavatar.capture.matting import steady

    network = load(shot.settings.own)
    masks = (segment_visible(network, image, shot.visible) for image in shot.images())
    return steady(shot.images(), masks)


def segment_visible(network: Any, image: Image, visible: Image) -> Image:
    """(S, S) mask of a BGR frame (S, S, 3), by the part of it that shows the sensor.

    Args:
        network: as loaded.
        image: the frame.
        visible: (S, S) 255 where it shows the sensor; the network takes the rest for a set.
    """
    import cv2
    import numpy as np

    left, top, width, height = cv2.boundingRect(visible)
    window = slice(top, top + height), slice(left, left + width)
    mask = np.zeros_like(visible)
    if width:
        mask[window] = segment(network, image[window])
    return mask


def segment(network: Any, image: Image) -> Image:
    """(H, W) mask of a BGR image (H, W, 3)."""
    import cv2
    import numpy as np

    small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    network.setInput(cv2.dnn.blobFromImage(small, 1 / 255, swapRB=True))
    mask = network.forward()[0, 0]
    level = np.float32(1 / 255)
    sharp = guided_filter(level * image, level * small, mask)
    return np.asarray(np.rint(255 * sharp.clip(0, 1)), np.uint8)


def guided_filter(image: Float32, small: Float32, mask: Float32) -> Float32:
    """(H, W) a small mask that follows the edges of a larger image, about from 0 to 1.

    Args:
        image: (H, W, 3) colours in [0, 1].
        small: (h, w, 3) the same at the size of the mask.
        mask: (h, w) in [0, 1].
    """
    import cv2
    import numpy as np

    def mean(values: Float32) -> Float32:
        return np.asarray(cv2.blur(values, (2 * RADIUS + 1, 2 * RADIUS + 1)))

    colour, alpha = mean(small), mean(mask)
    products = mean((small[..., :, None] * small[..., None, :]).reshape(*mask.shape, 9))
    variance = products.reshape(*mask.shape, 3, 3) - colour[..., :, None] * colour[..., None, :]
    covariance = mean(small * mask[..., None]) - colour * alpha[..., None]
    regular = (variance + SMOOTHNESS * np.eye(3, dtype=np.float32)).astype(np.float32)
    slope = np.linalg.solve(regular, covariance[..., None])[..., 0]
    offset = alpha - (slope * colour).sum(axis=-1)
    size = image.shape[1::-1]
    slope, offset = (cv2.resize(mean(part), size) for part in (slope, offset))
    return np.asarray((slope * image).sum(axis=-1) + offset, np.float32)


def weights(settings: SelfieSettings) -> tuple[WeightFile, ...]:
    """The one network, whether it exists or not."""
    return mediapipe_weights(settings.weights, (SELFIE_SEGMENTATION,))


def load(settings: SelfieSettings) -> Any:
    """The network; `UserError` if it is missing or damaged."""
    return open_network(weights(settings)[0].path)


BACKEND = MattingBackend(
    name="selfie",
    run=matte_by_selfie,
    instead="set capture.matte.backend to plate or provided",
    settings=SelfieSettings,
    weights=weights,
    load=load,
)
