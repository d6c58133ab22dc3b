"""Writing videos, and making them smaller: H.264 in MP4 files with PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from eavatar.arrays import Image
from eavatar.io import atomic
from eavatar.threads import count_threads

BT_601, BT_709 = 6, 1  # numbers of ITU-T H.273
SMALL_QUALITY = "20"  # x264's constant rate factor of a video that is made smaller


def write_video(
    path: Path,
    images: Iterable[Image],
    rate: float,
    pixel_format: str,
    quality: str,
    threads: int | None = None,
) -> None:
    """Write uint8 images, (H, W, 3) RGB or (H, W), at least one and all of one size, as they come.

    Args:
        rate: images per second.
        pixel_format: FFmpeg's name; yuv420p, which all players show, takes even sizes only.
        quality: x264's constant rate factor, "0" lossless.
        threads: of the encoder; None for as many as this process may use.
    """
    import av

    images = iter(images)
    first = next(images)
    with atomic(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format
        # With x264's macroblock tree the same images give other files, and other pixels, from one
        # run to the next, depending on what was in its memory.
        stream.options = {"crf": quality, "preset": "veryfast", "mbtree": "0"}
        stream.thread_count = threads or count_threads()
        # What the conversion does; players guess by the size of the image else.
        stream.codec_context.colorspace = BT_601
        stream.codec_context.color_primaries = stream.codec_context.color_trc = BT_709
        for image in chain([first], images):
            source = "rgb24" if image.ndim == 3 else "gray"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=source)))
        container.mux(stream.encode())


def shrink_video(path: Path, height: int) -> bytes:
    """The content of a video file; of one whose images are higher, made anew with smaller ones.

    Args:
        path: a file that `write_video` wrote.
        height: most, an even number of pixels.
    """
    import av

    with av.open(str(path)) as container, TemporaryDirectory() as folder:
        stream = container.streams.video[0]
        if stream.height <= height:
            return path.read_bytes()
        size = 2 * round(stream.width * height / stream.height / 2), height
        images = (
            cv2.resize(frame.to_ndarray(format="rgb24"), size, interpolation=cv2.INTER_AREA)
            for frame in container.decode(stream)
        )
        small, rate = Path(folder) / path.name, float(stream.average_rate or 0)
        write_video(small, images, rate, "yuv420p", SMALL_QUALITY)
        return small.read_bytes()
