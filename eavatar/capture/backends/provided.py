"""Masks from alpha videos that come with a dataset, cropped and resized like the frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eavatar.backends import MattingBackend
from eavatar.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from eavatar.arrays import Image
    from eavatar.capture.matting import Shot
    from eavatar.capture.video import CameraFrames


MAX_TINT = 16  # 8-bit levels between channels; compression makes grey ones differ by a few
MIN_PERSON = 5  # per cent of the image that shows at least so much of a person in colour
MIN_MIDDLE = 8  # of 255; a mask whose values are 0 and 1 looks black


def matte_by_provided(shot: Shot) -> Iterator[Image]:
    """The masks of one camera, in the order of time.

    Raises:
        UserError: there is no folder, no video of this camera, or it does not fit the frames.
    """
    from eavatar.capture.captures import open_masks
    from eavatar.capture.ingest import Window
    from eavatar.capture.recording import check_size
    from eavatar.io import read_cameras, read_lenses
    from eavatar.lenses import straightener

    if shot.mattes is None:
        raise UserError(
            "the provided mattes have no folder; name it in the sample sheet or set "
            "capture.matte.backend."
        )
    mattes = open_masks(shot.mattes)
    clip = mattes.frames.get(shot.sequence, {}).get(shot.camera)
    if clip is None:
        raise UserError(
            f"{shot.mattes} has no alpha video of camera {shot.camera} in {shot.sequence}; restore "
            "it or set capture.matte.backend."
        )
    header = clip.header()
    full = read_cameras(shot.frames / "full_cameras.json")[shot.camera]
    check_size(clip.paths[0], header.width, header.height, (full.width, full.height))
    lengths = shot.ingest.video_lengths(max(shot.source_frames))
    if not lengths[0] <= header.frames <= lengths[-1]:
        raise UserError(
            f"{clip.paths[0]} has {header.frames} frames, but the colour video has "
            f"{' to '.join(map(str, lengths))}; give the masks of this recording, one for each of "
            "its frames."
        )
    frame = read_cameras(shot.frames / "cameras.json")[shot.camera]
    window = Window.between(full, frame, header.width, header.height)
    lenses = mattes.lenses
    if lenses is None:
        lenses = read_lenses(shot.frames / "full_cameras.json")
    straighten = straightener(lenses.get(shot.camera), header.width, header.height)
    images = (straighten(image[..., 1]) for image in _frames(clip, set(shot.source_frames)))
    return (window.apply(image) for image in images)


def check_first_mask(path: Path, image: Image) -> None:
    """Raise `UserError` unless an image is grey and its middle brighter than its upper corners.

    Args:
        path: of the file that holds it.
        image: (H, W, 3) 8 bits, uncropped, in whose middle the person is.
    """
    import numpy as np

    if np.percentile(np.ptp(image, axis=2), 100 - MIN_PERSON) > MAX_TINT:
        raise UserError(
            f"the first mask of {path} is in colour; give masks that are white, 255, where the "
            "person is and else black, such as the alpha channel of pictures that were cut out."
        )
    mask = image[..., 1]
    height, width = mask.shape
    middle = mask[height // 3 : -height // 3, width // 3 : -width // 3].mean()
    corners = mask[: height // 8, [*range(width // 8), *range(-width // 8, 0)]].mean()
    if middle <= max(corners, MIN_MIDDLE):
        raise UserError(
            f"the first mask of {path} is {middle:.0f} of 255 in the middle and {corners:.0f} in "
            "the upper corners; give masks that are white, 255, where the person is."
        )


def _frames(clip: CameraFrames, wanted: set[int]) -> Iterator[Image]:
    """The wanted frames (H, W, 3) of a clip, by their indices, in order."""
    every = math.gcd(*wanted) or 1  # what lies between is neither converted nor, of images, read
    return (image for index, image in clip.decode(every) if index in wanted)


BACKEND = MattingBackend(
    name="provided",
    run=matte_by_provided,
    instead="set capture.matte.backend to another value",
    column="mattes",
)
