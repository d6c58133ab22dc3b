"""The frames of one camera: a video read with PyAV, or an image file per frame.

Videos are decoded from the first frame to the last, never by seeking; their containers alone give
lengths, and reveal a truncated file. Both are turned as players show them. A camera's frames are
called

    cam_<serial>.mp4                  or another of VIDEO_SUFFIXES
    cam_<serial>/<any word><n>.png    or another of IMAGE_SUFFIXES; n counts up by one
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from eavatar.arrays import Image
from eavatar.capture.turns import read_turn, to_upright_bgr
from eavatar.capture.yuv import Part, read_hdr
from eavatar.errors import UserError

JPEG_END = b"\xff\xd9"  # decoders silently fill a JPEG that lacks it with grey
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm"}  # in either case, as below
TURNED = (
    "what is read is what players show, turned by a video's display matrix or an image's EXIF "
    "orientation: calibrate that"
)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
MAX_REORDERED = 17  # packets of which one is shown last: at most 16 B-frames are coded behind it
MAX_PADDING = 64  # bytes at the end of a file in which the marker must be; some writers pad


@dataclass(frozen=True)
class Header:
    """What is known of a camera's frames without decoding all of them.

    Attributes:
        width: of the images as they are shown, pixels.
        height: likewise.
        frames: number of frames.
        gaps: indices of the frames before which the timestamps skip at least one frame.
        seconds: from the first frame to the last; 0 if nothing tells. Clocks differ a little.
        hdr: of a video of high dynamic range, see `eavatar.capture.yuv.read_hdr`.
    """

    width: int
    height: int
    frames: int
    gaps: tuple[int, ...] = ()
    hdr: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def rate(self) -> float:
        """Frames per second, on average; 0 if nothing tells."""
        return (self.frames - 1) / self.seconds if self.seconds else 0.0


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
        return self.paths[0].suffix.lower() in VIDEO_SUFFIXES

    def header(self) -> Header:
        """Size and length; `UserError` if the video is cut off or an image file is missing."""
        if self.is_video:
            return read_video_header(self.paths[0])
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"the image {path} does not exist; copy it again from its source.")
        height, width = read_raw_image(self.paths[0]).shape[:2]
        return Header(width, height, len(self.paths))

    def decode(self, every: int = 1, part: Part | None = None) -> Iterator[tuple[int, Image]]:
        """Yield (frame index, (H, W, 3) BGR) of every n-th frame, from the first.

        Args:
            every: n.
            part: of the images, the only one that is wanted; all if None.

        Raises:
            UserError: a frame cannot be decoded, has another size than the first, or is missing.
        """
        if self.is_video:
            yield from decode_video(self.paths[0], every, part)
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
            yield index, image if part is None else image[part]


def list_cameras(folders: Iterable[Path]) -> dict[str, CameraFrames]:
    """Serial number to frames of all cameras that recorded into some folders; none is opened.

    Raises:
        UserError: there are two recordings of one camera, or images of several kinds.
    """
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("cam_*"))):
        serial = (path.name if path.is_dir() else path.stem).removeprefix("cam_")
        if not (_has_images(path) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES):
            continue
        if serial in found:
            raise UserError(f"{path} and {found[serial]} are of the same camera; remove one.")
        found[serial] = path
    return {
        serial: CameraFrames(tuple(_number_images(path)) if path.is_dir() else (path,))
        for serial, path in found.items()
    }


def list_plates(folders: Iterable[Path]) -> dict[str, Path]:
    """The images image_<serial> of some folders, by serial number."""
    files: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("image_*"))):
        if not is_image(path):
            continue
        serial = path.stem.removeprefix("image_")
        if serial in files:
            raise UserError(f"{path} and {files[serial]} are of the same camera; remove one.")
        files[serial] = path
    return files


def _has_images(folder: Path) -> bool:
    return any(map(is_image, folder.iterdir()))


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image that is read."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _number_images(folder: Path) -> Iterator[Path]:
    """The images of a folder from the lowest number to the highest, or to beyond the first gap."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for path in sorted(filter(is_image, folder.iterdir())):
        word, number = re.fullmatch(r"(.*?)([0-9]*)", path.stem, re.DOTALL).groups()  # type: ignore[union-attr]
        numbers.setdefault((word, path.suffix if number else ""), []).append(number)
    (word, suffix), texts = next(iter(numbers.items()))
    if len(numbers) > 1 or not suffix:
        raise UserError(
            f"the images of {folder} are not one recording: name them alike, with a number before "
            "the suffix that counts the frames, as 00000.png."
        )
    digits, first = min(map(len, texts)), min(map(int, texts))
    # One more than there are shows a gap; times in nanoseconds are millions of numbers apart.
    last = min(max(map(int, texts)), first + len(texts))
    for number in range(first, last + 1):
        yield folder / f"{word}{number:0{digits}d}{suffix}"


def read_raw_image(path: Path) -> Image:
    """An (H, W, 3) BGR image file, turned as its EXIF orientation says.

    Raises:
        UserError: it is missing, cut off, no image, or of numbers that are no colours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read ({error.strerror}).") from error
    if path.suffix.lower() in (".jpg", ".jpeg") and JPEG_END not in content[-MAX_PADDING:]:
        raise UserError(f"{path} is cut off; copy it again from its source.")
    data = np.frombuffer(content, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if content else None
    if image is None:
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if content else None
        if stored is not None:
            raise UserError(f"{path} holds {stored.dtype} values; save it with 8 or 16 bits.")
        raise UserError(f"{path} is not a readable image; copy it again from its source.")
    return image


def read_video_header(path: Path) -> Header:
    """Size and length of a video whose file is complete.

    The container's table of packets gives the byte range of every frame, so a truncated file is
    found without reading it. Where there is no complete table, as in fragments or in Matroska, the
    packets are read; also where its times skip a frame, or may do so: they are those of decoding,
    which come late where frames are coded out of order. The first frame alone is decoded, which
    tells how players turn it.

    Raises:
        UserError: the file cannot be opened, holds no video, ends before its last packet, hides
            some of its frames, or is to be shown mirrored.
    """
    held = path.stat().st_size if path.exists() else 0
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise UserError(f"{path} holds no known video; copy it again from its source.")
            declared, table = stream.frames, stream.index_entries
            times = [entry.timestamp for entry in table]
            whole = max((entry.pos + entry.size for entry in table), default=0) <= held
            hides = any(entry.is_discard for entry in table)
            odd = declared == 0 or len(table) != declared or _gaps(times)
            size = _shown_size(path, container, stream) if whole else (0, 0)
            if whole and (odd or _ends_late(container, stream, times)):
                packets, times, count = _read_packets(path)
                whole = not any(packet.is_corrupt for packet in packets)
                hides |= any(packet.is_discard for packet in packets) or count < declared
            seconds = float((times[-1] - times[0]) * (stream.time_base or 0)) if times else 0.0
            header = Header(*size, len(times), _gaps(times), read_hdr(stream), seconds)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete video ({error}); copy it again from its source."
        ) from error
    if not (whole and times):
        raise UserError(
            f"{path} is truncated: it declares {max(declared, len(times))} frames that its {held} "
            "bytes do not hold; copy it again from its source."
        )
    if hides:
        raise UserError(
            f"{path} was trimmed without encoding: an edit list hides some of its frames; show all "
            f"('ffmpeg -ignore_editlist 1 -i {path.name} -c copy whole{path.suffix}') or encode "
            "the trimmed video again."
        )
    return header


def _shown_size(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[int, int]:
    """Width and height of the frames as players turn them, by the first of them."""
    stream.codec_context.thread_count = 1  # several would each wait for a frame of their own
    turned = any(read_turn(frame, path) % 2 for frame in islice(container.decode(stream), 1))
    return (stream.height, stream.width) if turned else (stream.width, stream.height)


def _read_packets(path: Path) -> tuple[list[av.Packet[Any]], list[int], int]:
    """All packets of a video that hold something, their times, in order, and how many there were.

    In AVI packets have a place in place of a time, and frames that are skipped are empty packets.
    """
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size > 0]
        if container.format.name == "avi" and packets:
            places = [packet.dts or 0 for packet in packets]
            return packets, places, places[-1] - places[0] + 1
    return packets, sorted(_time(packet) for packet in packets), len(packets)


def _ends_late(
    container: av.container.InputContainer, stream: av.VideoStream, times: list[int]
) -> bool:
    """Whether the last frames may be shown later than their times of decoding tell.

    Frames that are coded out of order are decoded ahead of when they are shown, by a few frames: a
    gap among as many of the last shows in no time of decoding. But then the last frame is further
    ahead than the first. Only the last packets are read.

    Args:
        container: its place is lost.
        stream: with a complete table.
        times: of decoding, in order.
    """
    ahead = (stream.start_time or 0) - times[0]
    if ahead <= 0 or len(times) <= MAX_REORDERED:
        return ahead > 0  # of few frames the first are the last, too
    container.seek(times[-MAX_REORDERED], any_frame=True, stream=stream)
    last = max(_time(packet) for packet in container.demux(stream) if packet.size > 0)
    return last - times[-1] > ahead + float(np.median(np.diff(times))) / 2


def _time(packet: av.Packet[Any]) -> int:
    """When a packet is shown, in units of the stream; of old containers, when it is decoded."""
    time = packet.dts if packet.pts is None else packet.pts
    return 0 if time is None else time


def _gaps(times: list[int]) -> tuple[int, ...]:
    """Indices before which the time step is more than 1.5 times the median."""
    steps = np.diff(times)
    if len(steps) == 0:
        return ()
    return tuple((np.flatnonzero(steps > 1.5 * np.median(steps)) + 1).tolist())


def decode_video(
    path: Path, every: int = 1, part: Part | None = None
) -> Iterator[tuple[int, Image]]:
    """Yield (frame index, (H, W, 3) BGR) of every n-th frame, from the first, in one pass.

    Frames are turned as players turn them: so they are seen by who calibrates by another program.
    Damage that the decoder would conceal is an error.

    Args:
        path: the video.
        every: n.
        part: of the frames, the only one that is wanted; all if None.

    Raises:
        UserError: a frame cannot be decoded or has another size, the video ends early, or it is to
            be shown mirrored.
    """
    declared, count = read_video_header(path).frames, 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            stream.codec_context.thread_count = 1  # cameras run in parallel; more miss damage
            size = (stream.width, stream.height)
            for frame in container.decode(stream):
                if frame.is_corrupt or (frame.width, frame.height) != size:
                    raise _damage(path, count, "the frame is damaged")
                if count == 0:
                    turn = read_turn(frame, path)
                if count % every == 0:
                    yield count, to_upright_bgr(frame, stream.codec_context.name, turn, part)
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
