"""Reading MP4 files with PyAV: the header alone, a fast completeness check, sequential decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from numpy.typing import NDArray

from eavatar.errors import UserError

Image = NDArray[Any]  # 8 bits; OpenCV and PyAV annotate no narrower type


@dataclass(frozen=True)
class Header:
    """What the container of a video declares: image size in pixels and number of frames."""

    width: int
    height: int
    frames: int


def read_header(path: Path) -> Header:
    """Size and length of a video whose file is complete; no frame is decoded.

    The container's table of packets gives the byte range of every frame, so a file that was cut
    off is found without reading it.

    Raises:
        UserError: the file cannot be opened, holds no video, or ends before its last packet.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} holds no video stream; copy it again from its source.")
            stream = container.streams.video[0]
            header = Header(stream.width, stream.height, stream.frames)
            packets = stream.index_entries
            end = max((entry.pos + entry.size for entry in packets), default=0)
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{path} is not a complete video ({error.strerror}); copy it again from its source."
        ) from error
    if header.frames == 0 or len(packets) != header.frames or end > path.stat().st_size:
        raise UserError(
            f"{path} is truncated: it declares {header.frames} frames that its "
            f"{path.stat().st_size} bytes do not hold; copy it again from its source."
        )
    return header


def decode(path: Path, every: int = 1) -> Iterator[tuple[int, Image]]:
    """Yield (frame index, (H, W, 3) BGR) of every n-th frame, from the first, in one pass.

    Raises:
        UserError: a frame cannot be decoded, or the video ends early.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for count, frame in enumerate(container.decode(stream), start=1):
                if (count - 1) % every == 0:
                    yield count - 1, frame.to_ndarray(format="bgr24")
            declared = stream.frames
    except av.FFmpegError as error:
        raise UserError(
            f"{path} cannot be decoded after frame {count} ({error.strerror}); "
            "copy it again from its source."
        ) from error
    if count != declared:
        raise UserError(
            f"{path} holds {count} of its {declared} frames; copy it again from its source."
        )
