"""A raw recording, whatever its layout, and the check that its frames are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eavatar.cameras import Camera
from eavatar.capture.colour import Colour
from eavatar.capture.video import TURNED, VIDEO_SUFFIXES, CameraFrames, Header
from eavatar.errors import UserError
from eavatar.lenses import Lens

MAX_LISTED = 3  # files, in a sentence
RATE_TOLERANCE = 0.02  # 24 and 25 frames per second are 4 % apart, 29.97 and 30 only 0.1 %
CLOCK = 2e-3  # seconds by which equal videos may differ where times are rounded to milliseconds
SIZE_TOLERANCE = 3  # pixels; a video of a scaled image is rounded to even sizes

FramesBySequence = Mapping[str, Mapping[str, CameraFrames]]
"""Sequence to serial number to the camera's frames."""


@dataclass(frozen=True)
class Capture:
    """The raw recording of a subject: calibration in memory, images by path.

    Attributes:
        root: the capture's folder.
        cameras: serial number to camera, in the pixels of its full-size image whatever the size of
            the stored ones; sizes may differ between cameras.
        colours: serial number to colour correction; empty if its files are missing, None if the
            layout has none and the images are used as they are.
        frames: the colour images; `check_videos` finds those that are missing.
        plates: serial number to the image without the subject; may be empty.
        masks: those that the layout itself contains, frame by frame as the colour images; may be
            empty. A user who wants them names the capture's folder in the column ``mattes``.
        visible: images that are 0 in the padding of an earlier crop, and 0 everywhere where a
            frame is unusable; may be empty.
        prepared: the images are cropped and subsampled in time already: the settings ``crop_*``
            and ``every`` do not apply to them.
        lenses: serial number to lens, of the cameras whose images are distorted.
        crops: serial number to left, top and side of its square crop, full-size pixels, in place of
            the settings ``crop_*``; of all cameras or none.
    """

    root: Path
    cameras: Mapping[str, Camera]
    colours: Mapping[str, Colour] | None
    frames: FramesBySequence
    plates: Mapping[str, Path]
    masks: FramesBySequence
    visible: FramesBySequence
    prepared: bool = False
    lenses: Mapping[str, Lens] = field(default_factory=dict)
    crops: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def full_size(self, serial: str) -> tuple[int, int]:
        """Width and height of the image that a camera's calibration refers to, pixels."""
        camera = self.cameras[serial]
        return camera.width, camera.height


def check_videos(
    capture: Capture, sequences: Sequence[str], cameras: Iterable[str] | None = None
) -> dict[str, dict[str, Header]]:
    """Check that the frames of some sequences are complete and agree; return their headers.

    Fast: of a video one frame is decoded (see `read_video_header`), of images the first is read.

    Args:
        capture: the recording.
        sequences: to check.
        cameras: serial numbers to check; all that are calibrated or have recorded if None.

    Returns:
        sequence to serial number to header.

    Raises:
        UserError: a sequence that the capture lacks, a camera without frames or without
            calibration, a truncated video, a missing image, a size that is not that of the full
            image scaled down, cameras of one full size that are stored at several, or cameras of
            different lengths or frame rates.
    """
    headers: dict[str, dict[str, Header]] = {}
    stored: dict[tuple[int, int], Header] = {}
    for sequence in sequences:
        if sequence not in capture.frames:
            raise UserError(f"{capture.root} has no sequence '{sequence}'.")
        recorded = capture.frames[sequence]
        for serial in sorted({*recorded, *capture.cameras} if cameras is None else cameras):
            _check_presence(capture, sequence, serial)
            header, path = recorded[serial].header(), recorded[serial].paths[0]
            full_size = capture.full_size(serial)
            check_size(path, header.width, header.height, full_size)
            own = headers.setdefault(sequence, {})
            own[serial] = header
            _check_synchrony(path, header, next(iter(own.values())), sequence)
            size = stored.setdefault(full_size, header)
            if (header.width, header.height) != (size.width, size.height):
                raise UserError(
                    f"{path} has {header.width}×{header.height} pixels but other videos have "
                    f"{size.width}×{size.height}; store all at one size."
                )
    return headers


def check_size(path: Path, width: int, height: int, full_size: tuple[int, int]) -> None:
    """Raise `UserError` unless an image is the full image at another size."""
    full_width, full_height = full_size
    if abs(height - width * full_height / full_width) > SIZE_TOLERANCE:
        lies = abs(width - height * full_height / full_width) <= SIZE_TOLERANCE
        raise UserError(
            f"{path} has {width}×{height} pixels, which is not {full_width}×{full_height} scaled"
            + (f" but on its side; {TURNED}." if lies else "; give the uncropped image.")
        )


def _check_presence(capture: Capture, sequence: str, serial: str) -> None:
    """Raise `UserError` unless a camera has both frames and a calibration."""
    recorded = capture.frames[sequence]
    if serial not in capture.cameras:
        raise UserError(
            f"the calibration lacks camera {serial}, which recorded {recorded[serial].paths[0]}; "
            "restore it or leave the camera out with capture.ingest.cameras."
        )
    if serial not in recorded:
        folder = _find_folder(capture, sequence)
        others = sorted(path.name for path in folder.iterdir() if path.is_dir() or path.suffix)
        others = [name for name in others if serial in name] or others
        raise UserError(
            f"the video of camera {serial} is missing from {sequence}: {folder} has no "
            f"cam_{serial}.mp4{_say_what_lies_there(others)}; restore it or leave the "
            + (
                "camera out with capture.ingest.cameras."
                if recorded
                else "sequence out with capture.ingest.exclude."
            )
        )


def _find_folder(capture: Capture, sequence: str) -> Path:
    """Where the videos of a sequence lie or should lie; the capture's folder if nobody knows."""
    for frames in capture.frames[sequence].values():
        path = frames.paths[0]
        return path.parent if frames.is_video else path.parent.parent
    sequences = capture.root / "sequences" / sequence
    folders = (sequences / "images", sequences)
    return next((folder for folder in folders if folder.is_dir()), capture.root)


def _say_what_lies_there(names: Sequence[str]) -> str:
    """What a folder holds in place of a recording, and what would be read."""
    strangers = [name for name in names if not name.startswith(".")]
    if not strangers:
        return ""
    listed = ", ".join(strangers[:MAX_LISTED]) + (", …" if len(strangers) > MAX_LISTED else "")
    return (
        f" (it holds {listed}; what is read is cam_<camera> as a video, "
        f"{', '.join(sorted(VIDEO_SUFFIXES))}, or as a folder of numbered images)"
    )


def _check_synchrony(path: Path, header: Header, first: Header, sequence: str) -> None:
    """Raise `UserError` unless a video has the frames and gaps of the sequence's first."""
    if header.frames != first.frames:
        raise UserError(
            f"{path} has {header.frames} frames but other cameras of {sequence} have "
            f"{first.frames}; the videos of a sequence must be synchronised: copy it again."
        )
    if header.gaps != first.gaps:
        frame = min({*header.gaps} ^ {*first.gaps})
        raise UserError(
            f"{path} and other cameras of {sequence} do not skip the same frames: their times "
            f"differ at frame {frame}; the videos must be synchronised: copy it again."
        )
    fault = explain_rate(path, header, first, sequence)
    if fault:
        raise UserError(fault)


def explain_rate(path: Path, header: Header, other: Header, sequence: str) -> str:
    """Why a video of as many frames as another is not synchronised with it; empty if it may be."""
    apart = abs(header.seconds - other.seconds) - CLOCK
    if not (header.rate and other.rate and apart > RATE_TOLERANCE * other.seconds):
        return ""
    return (
        f"{path} has {header.rate:.4g} frames per second but other cameras of {sequence} have "
        f"{other.rate:.4g}; the videos of a sequence must be synchronised: leave the camera out "
        "with capture.ingest.cameras or, if its frames do belong to theirs, encode it at their "
        "rate."
    )
