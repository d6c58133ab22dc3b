"""One ordinary video as a capture: one camera, called `CAMERA`, of unknown calibration.

Telephones record with a varying frame rate, turned on their side and in 10 bits. Timesteps are
evenly spaced, each with the frame nearest in time; frames are upright, padded to a square in black.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from eavatar.arrays import Image
from eavatar.cameras import Camera
from eavatar.capture.ingest import FrameRow, Window, measure_sharpness
from eavatar.capture.turns import read_turn, to_upright_bgr
from eavatar.capture.yuv import HDR_DOUBT, read_hdr
from eavatar.errors import UserError
from eavatar.io import Sequences, write_cameras, write_image, write_rows, write_sequences
from eavatar.settings import MIN_FRAME, IngestSettings

logger = logging.getLogger(__name__)

CAMERA = "video"
QUALITY = 95  # of the frames' JPEG
FOCALS = 0.1, 100.0  # least and most focal length / longer side: fisheyes and telescopes


def ingest_video(
    video: Path, rate: float, image_size: int, focal: float | None, output: Path
) -> IngestSettings:
    """Write a video's frames, and a camera a metre before the origin of the world.

    Args:
        video: any file that FFmpeg reads.
        rate: timesteps per second.
        image_size: most, side of the frames, pixels.
        focal: focal length, pixels of the upright video; None puts its longer side in the place.
        output: a new folder; receives cameras.json, full_cameras.json, sequences.json, and of the
            sequence that is called as the file, <sequence>/<camera>/<timestep:05d>.jpg and
            <sequence>.csv.

    Returns:
        Settings that crop what was detected in the video as the frames are cropped.

    Raises:
        UserError: the video cannot be decoded, is too small or changes its size, or no lens has
            the focal length.
    """
    folder = output / video.stem / CAMERA
    rows, window = [], None
    for timestep, source, image in _timesteps(video, rate):
        height, width = image.shape[:2]
        if window is None:
            window = _square(width, height, image_size)
            _check_size(video, window, focal)
        if (width, height) != (window.stored_width, window.stored_height):
            raise UserError(f"{video} changes its image size at frame {source}; encode it again.")
        frame = window.apply(image)
        path = folder / f"{timestep:05d}.jpg"
        write_image(path, frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        sharpness = measure_sharpness(frame[window.inside])
        rows.append(FrameRow(timestep, CAMERA, source, sharpness))
    if window is None:
        raise UserError(f"{video} holds no frame; copy it again from its source.")
    longer = focal or max(window.stored_width, window.stored_height)
    whole = _whole_camera(window, longer)
    write_cameras(output / "full_cameras.json", {CAMERA: whole})
    write_cameras(output / "cameras.json", {CAMERA: window.camera(whole)})
    write_sequences(output / "sequences.json", Sequences((video.stem,), ()))
    write_rows(output / f"{video.stem}.csv", rows)
    return IngestSettings(
        sequences=(video.stem,),
        exclude=(),
        held_out=(),
        cameras=(CAMERA,),
        every=1,
        crop_origin=(window.x, window.y),
        crop_size=window.width,
        image_size=window.image_size,
        jpeg_quality=QUALITY,
        colour_correction=False,
    )


def _check_size(video: Path, window: Window, focal: float | None) -> None:
    """Raise `UserError` for a video that is too small, or a focal length that it cannot have."""
    size, longer = f"{window.stored_width}×{window.stored_height} pixels", window.width
    if window.image_size < MIN_FRAME:
        raise UserError(f"{video} is {size}; give one whose longer side has {MIN_FRAME} or more.")
    low, high = (factor * longer for factor in FOCALS)
    if focal is not None and not low <= focal <= high:
        raise UserError(
            f"--focal {focal:g} cannot be that of {video}, which is {size}; give one from {low:g} "
            f"to {high:g} of these, or leave it out."
        )


def _square(width: int, height: int, image_size: int) -> Window:
    """The square around an image."""
    side = max(width, height)
    corner = (width - side) // 2, (height - side) // 2
    return Window(*corner, side, side, width, height, min(image_size, side))


def _whole_camera(window: Window, focal: float) -> Camera:
    width, height = window.stored_width, window.stored_height
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    world_to_camera = np.eye(4)
    world_to_camera[2, 3] = 1.0
    return Camera(intrinsics, world_to_camera, width, height)


def _timesteps(video: Path, rate: float) -> Iterator[tuple[int, int, Image]]:
    """Timestep, index of its frame, and (H, W, 3) BGR upright image; the last is the last frame."""
    timestep, source, earlier = 0, 0, None
    for source, (time, read) in enumerate(_decode(video, rate)):
        while earlier and timestep / rate <= (earlier[0] + time) / 2:
            yield timestep, source - 1, earlier[1]()
            timestep += 1
        earlier = time, read
    if earlier:
        for last in range(timestep, max(timestep, round(rate * earlier[0])) + 1):
            yield last, source, earlier[1]()


def _decode(video: Path, rate: float) -> Iterator[tuple[float, Callable[[], Image]]]:
    """Seconds since the first frame, and what gives its upright image, (H, W, 3) BGR.

    Frames are evenly spaced where the file holds no times.

    Raises:
        UserError: the file is no readable video, or to be shown mirrored.
    """
    try:
        with av.open(str(video)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise UserError(f"{video} holds no video; name a video file.")
            if hdr := read_hdr(stream):
                logger.warning("%s has a high dynamic range (%s): its %s.", video, hdr, HDR_DOUBT)
            stream.thread_type = "AUTO"
            start, step = None, 1 / float(stream.average_rate or rate)
            for index, frame in enumerate(container.decode(stream)):
                time = index * step if frame.time is None else frame.time
                start = time if start is None else start
                turn = read_turn(frame, video)
                codec = stream.codec_context.name
                yield time - start, partial(to_upright_bgr, frame, codec, turn)
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{video} is not a readable video ({error}); copy it again from its source."
        ) from error
