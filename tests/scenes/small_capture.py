"""A NeRSemble v2 capture of a few small frames, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from eavatar.settings import IngestSettings, MatteSettings

SERIALS = ("222200037", "222200042", "221501007")
WIDTH, HEIGHT = 220, 320  # 3208 / 2200 · 220 = 320.8: the scale differs between the axes
INTRINSICS = np.array([[8200.0, 0.0, 1099.2], [0.0, 8200.0, 1595.2], [0.0, 0.0, 1.0]])


def ingest_settings(**changes: object) -> IngestSettings:
    settings: dict[str, object] = {
        "sequences": ["*"], "exclude": ["BACKGROUND"], "held_out": ["FREE"], "cameras": ["*"],
        "every": 1, "crop_origin": [-200, 304], "crop_size": 2600, "image_size": 64,
        "jpeg_quality": 95, "colour_correction": True,
    }  # fmt: skip
    return IngestSettings.model_validate(settings | changes)


def matte_settings(
    backend: str, model: str = "birefnet-portrait", weights: Path = Path("missing.pth")
) -> MatteSettings:
    settings: dict[str, object] = {
        "backend": backend,
        "background_matting_v2": {"weights": weights}, "rembg": {"model": model},
        "min_coverage": 0.02, "max_coverage": 0.95, "max_jump": 0.2, "foreground": "plate",
    }  # fmt: skip
    return MatteSettings.model_validate(settings)


def world_to_camera(azimuth: float) -> NDArray[np.float64]:
    """A camera 1 m from the origin, at an angle in radians around y, that looks at it."""
    cos, sin = np.cos(azimuth), np.sin(azimuth)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[cos, 0, -sin], [0, -1, 0], [-sin, 0, -cos]])
    matrix[2, 3] = 1.0
    return matrix


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    header_first: bool = False,
    rate: Fraction | int = 73,
) -> Path:
    """Write RGB frames (H, W, 3) as nearly lossless H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if header_first else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "6", "preset": "fast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_timed(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    times: Iterable[int],
    reordered: int = 0,
    transfer: int = 2,
) -> Path:
    """Write RGB frames (H, W, 3) as H.264, each at a time, in frames of 73 Hz.

    Between others are so many B-frames. The file names a transfer function, by default none.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=73, options={"bf": str(reordered)})
        stream.codec_context.color_trc = transfer
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for time, image in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_capture(
    root: Path,
    frames: Sequence[NDArray[np.uint8]],
    sequences: Sequence[str] = ("EXP-1-head", "FREE"),
    plate: NDArray[np.uint8] | None = None,
    colour: NDArray[np.float64] | None = None,
) -> Path:
    """The same RGB frames for every camera and sequence, with a plate if one is given."""
    colour = np.eye(3) if colour is None else colour
    calibration = root / "calibration"
    calibration.mkdir(parents=True)
    cameras = {
        serial: world_to_camera(0.5 * (index - 1)).tolist() for index, serial in enumerate(SERIALS)
    }
    content = {"world_2_cam": cameras, "intrinsics": INTRINSICS.tolist()}
    (calibration / "camera_params.json").write_text(json.dumps(content))
    colours = {serial: colour.tolist() for serial in SERIALS}
    (calibration / "color_calibration.json").write_text(json.dumps(colours))
    for sequence in sequences:
        for serial in SERIALS:
            write_video(root / "sequences" / sequence / "images" / f"cam_{serial}.mp4", frames)
    if plate is not None:
        background = root / "sequences" / "BACKGROUND"
        background.mkdir()
        for serial in SERIALS:
            cv2.imwrite(str(background / f"image_{serial}.jpg"), plate[..., ::-1])
    return root


def grey_frames(count: int = 4) -> list[NDArray[np.uint8]]:
    """Uniform frames, each 20 levels brighter than the one before."""
    return [np.full((HEIGHT, WIDTH, 3), 60 + 20 * index, np.uint8) for index in range(count)]
