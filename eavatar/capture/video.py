"""The frames of one camera: a video read with PyAV, or an image file per frame.

Videos are decoded from the first frame to the last, never by seeking; their containers alone give
sizes and lengths, and reveal a truncated file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from eavatar.arrays import Image
from eavatar.errors import UserError

JPEG_END = b"\xff\xd9"  # decoders silently fill a JPEG that lacks it with grey
MAX_PADDING = 64  # bytes at the end of a file in which the marker must be; some writers pad


@dataclass(frozen=True)
class Header:
    """What is known of a camera's frames without decoding them.

    Attributes:
        width: of the images, pixels.
        height: of the images, pixels.
        frames: number of frames.
        gaps: indices of the frames before which the timestamps skip at least one frame.
    """

    width: int
    height: int
    frames: int
    gaps: tuple[int, ...] = ()


@dataclass(frozen=True)
class CameraFrames:
    """The frames of one camera of one sequence, in order.

    Attributes:
        paths: (1,) a video, or (T,) an image file per frame.
    """

    paths: tuple[Path, ...]

    @property
    def is_video(self) -> bool:
        """Whether the frames are in one video file."""
        return self.paths[0].suffix == ".mp4"

    def header(self) -> Header:
        """Size and length; `UserError` if the video is cut off or an image file is missing."""
        if self.is_video:
            return read_video_header(self.paths[0])
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"the image {path} does not exist; copy it again from its source.")
        height, width = read_raw_image(self.paths[0]).shape[:2]
        return Header(width, height, len(self.paths))

    def decode(self, every: int = 1) -> Iterator[tuple[int, Image]]:
        """Yield (frame index, (H, W, 3) BGR) of every n-th frame, from the first.

        Args:
            every: n.

        Raises:
            UserError: a frame cannot be decoded, has another size than the first, or is missing.
        """
        if self.is_video:
            yield from decode_video(self.paths[0], every)
            return
        shape = None
        for index in range(0, len(self.paths), every):
            image = read_raw_image(self.paths[index])
            shape = shape or image.shape
            if image.shape != shape:
                raise UserError(
                    f"{self.paths[index]} has {image.shape[1]}×{image.shape[0]} pixels but "
                    f"{self.paths[0]} has {shape[1]}×{shape[0]}; copy it again from its source."
                )
            yield index, image


def read_raw_image(path: Path) -> Image:
    """An (H, W, 3) BGR image file; `UserError` if it is missing, cut off or no image."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read ({error.strerror}).") from error
    if path.suffix == ".jpg" and JPEG_END not in content[-MAX_PADDING:]:
        raise UserError(f"{path} is cut off; copy it again from its source.")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise UserError(f"{path} is not a readable image; copy it again from its source.")
    return image


def read_video_header(path: Path) -> Header:
    """Size and length of a video whose file is complete; no frame is decoded.

    The container's table of packets gives the byte range of every frame, so a truncated file is
    found without reading it.

    Raises:
        UserError: the file cannot be opened, holds no video, or ends before its last packet.
    """
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise UserError(f"{path} holds no known video; copy it again from its source.")
            packets = stream.index_entries
            gaps = _gaps([entry.timestamp for entry in packets])
            header = Header(stream.width, stream.height, stream.frames, gaps)
            end = max((entry.pos + entry.size for entry in packets), default=0)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete video ({error}); copy it again from its source."
        ) from error
    if header.frames == 0 or len(packets) != header.frames or end > path.stat().st_size:
        raise UserError(
            f"{path} is truncated: it declares {header.frames} frames that its "
            f"{path.stat().st_size} bytes do not hold; copy it again from its source."
        )
    return header


def _gaps(times: list[int]) -> tuple[int, ...]:
    """Indices before which the time step is more than 1.5 times the median."""
    steps = np.diff(times)
    if len(steps) == 0:
        return ()
    return tuple((np.flatnonzero(steps > 1.5 * np.median(steps)) + 1).tolist())


def decode_video(path: Path, every: int = 1) -> Iterator[tuple[int, Image]]:
    """Yield (frame index, (H, W, 3) BGR) of every n-th frame, from the first, in one pass.

    Damage that the decoder would conceal is an error.

    Args:
        path: the video.
        every: n.

    Raises:
        UserError: a frame cannot be decoded or has another size, or the video ends early.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            stream.codec_context.thread_count = 1  # cameras run in parallel; more miss damage
            size, declared = (stream.width, stream.height), stream.frames
            for frame in container.decode(stream):
                if frame.is_corrupt or (frame.width, frame.height) != size:
                    raise _damage(path, count, "the frame is damaged")
                if count % every == 0:
                    yield count, frame.to_ndarray(format="bgr24")
                count += 1
    except (av.FFmpegError, OSError, IndexError) as error:
        raise _damage(path, count, str(error)) from error
    if count != declared:
        raise UserError(
            f"{path} holds {count} of its {declared} frames; copy it again from its source."
        )


def _damage(path: Path, count: int, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be decoded after frame {count} ({reason}); copy it again from its source."
    )
