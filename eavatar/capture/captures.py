"""Opening a capture or masks made elsewhere, whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eavatar.capture.gha import read_gha
from eavatar.capture.layouts import Layout, recognise
from eavatar.capture.nersemble import read_benchmark, read_v1, read_v2
from eavatar.capture.plain import read_plain
from eavatar.capture.recording import Capture, FramesBySequence
from eavatar.capture.video import list_cameras
from eavatar.errors import UserError
from eavatar.io import FORMAT_KEY
from eavatar.lenses import Lens

READERS = {
    Layout.NERSEMBLE_V1: read_v1,
    Layout.NERSEMBLE_V2: read_v2,
    Layout.BENCHMARK: read_benchmark,
    Layout.GHA: read_gha,
    Layout.PLAIN: read_plain,
}


def open_capture(root: Path) -> Capture:
    """Read the calibration and list the images of a capture; no image is read.

    Raises:
        UserError: the folder has no known layout (see `eavatar.capture.layouts`), a file is missing
            or malformed, a camera is not rigid, or has the name of the format number beside it.
    """
    capture = READERS[recognise(root)](root)
    if FORMAT_KEY in capture.cameras:
        raise UserError(
            f"{root}: a camera cannot be called '{FORMAT_KEY}', as the number of the results' "
            "layout is; rename it in the calibration and its recordings."
        )
    return capture


@dataclass(frozen=True)
class ProvidedMasks:
    """Masks that were made elsewhere.

    Attributes:
        frames: sequence to serial number to the camera's masks.
        prepared: the images are cropped already (see `Capture`).
        lenses: serial number to lens, if the masks have cameras of their own; None if they are of
            the same raw images as the frames.
    """

    frames: FramesBySequence
    prepared: bool
    lenses: Mapping[str, Lens] | None


def open_masks(folder: Path) -> ProvidedMasks:
    """The masks in a folder of <sequence>/cam_<serial>.mp4, or those of a capture's layout.

    Raises:
        UserError: the folder holds neither.
    """
    listed = {path.name: list_cameras([path]) for path in sorted(folder.glob("*/"))}
    videos = {sequence: cameras for sequence, cameras in listed.items() if cameras}
    if videos:
        return ProvidedMasks(videos, prepared=False, lenses=None)
    nothing = UserError(
        f"{folder} holds neither an alpha video of cameras (<sequence>/cam_<serial>.mp4) nor a "
        "capture in a layout that has masks; correct the sheet's column 'mattes'."
    )
    try:
        layout = recognise(folder)
    except UserError as error:
        raise nothing from error
    capture = READERS[layout](folder)
    if not capture.masks:
        raise nothing
    return ProvidedMasks(capture.masks, capture.prepared, capture.lenses)
