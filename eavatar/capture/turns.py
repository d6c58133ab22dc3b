"""Videos that players turn by a display matrix, such as those of a telephone held upright."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

from eavatar.arrays import Image
from eavatar.capture.yuv import Part, to_bgr
from eavatar.errors import UserError


def read_turn(frame: av.VideoFrame, path: Path) -> int:
    """Quarters, counter-clockwise, by which players turn the frames of a video.

    Args:
        frame: any of them.
        path: of the video, for the message.

    Raises:
        UserError: players would mirror or skew them; not all do, so that nobody knows what was
            calibrated.
    """
    known: Any = frame.side_data  # PyAV's type is of a dictionary without most of the keys
    side = known.get(Type.DISPLAYMATRIX)
    if side is None:
        return 0
    matrix = np.frombuffer(side, np.int32).reshape(3, 3)[:2, :2].astype(float)
    if np.linalg.det(matrix) <= 0 or frame.rotation % 90:
        raise UserError(
            f"{path} is to be shown mirrored or askew; encode it as it is to be shown "
            f"('ffmpeg -i {path.name} -crf 14 shown{path.suffix}')."
        )
    return round(frame.rotation / 90) % 4


def to_upright_bgr(frame: av.VideoFrame, codec: str, turn: int, part: Part | None = None) -> Image:
    """A decoded frame, or a part of it, as players show it: (H, W, 3) BGR uint8.

    Args:
        frame: of any pixel format.
        codec: FFmpeg's name of the decoder.
        turn: quarters, counter-clockwise.
        part: what is wanted of the turned frame; all if None.
    """
    if turn == 0:
        return to_bgr(frame, codec, part)
    turned = np.rot90(to_bgr(frame, codec), turn)
    return np.ascontiguousarray(turned if part is None else turned[part])
