"""`check`: every input of a subject is opened before anything long runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import chosen_cameras
from eavatar.capture.recording import Capture, check_videos
from eavatar.errors import UserError
from eavatar.face.landmarks import read_provided
from eavatar.face.morphable import read_morphable_model
from eavatar.io import atomic, read_mesh, require
from eavatar.settings import (
    GenerateSettings,
    IngestSettings,
    LandmarkSettings,
    MatteSettings,
    select,
)


@dataclass(frozen=True)
class Inputs:
    """Where a subject's inputs are; None where there is none.

    Attributes:
        capture: raw capture; morphable_model: its file.
        landmarks, mattes: folders of provided detections and alpha videos.
        mesh: a head mesh made elsewhere.
    """

    capture: Path
    morphable_model: Path
    landmarks: Path | None
    mattes: Path | None
    mesh: Path | None


def check(
    ingest: IngestSettings,
    matte: MatteSettings,
    landmarks: LandmarkSettings,
    prior: GenerateSettings,
    inputs: Inputs,
    output: Path,
) -> None:
    """Open all inputs that the chosen backends need and write what was found.

    Args:
        output: text file, a line for each kind of input.
    Raises:
        UserError: the first fault: what is wrong, where, and what to do.
    """
    capture = open_capture(inputs.capture)
    sequences = select(list(capture.clips), ingest.sequences, ingest.exclude)
    cameras = chosen_cameras(ingest, capture)
    headers = check_videos(capture, sequences)
    _check_split(ingest, sequences)
    lines = [f"{len(cameras)} cameras: {', '.join(cameras)}"]
    lines += [f"{name}: {header.frames} video frames" for name, header in headers.items()]
    model = read_morphable_model(inputs.morphable_model)
    lines.append(f"morphable model: {len(model.mean)} vertices")
    _check_mattes(matte, inputs, capture, sequences, cameras)
    if landmarks.backend == "provided":
        folder = _folder(inputs.landmarks, "landmarks", "face.landmarks.backend")
        for name in sequences:
            _, points, _ = read_provided(folder / f"{name}.npz")
            if len(points) < headers[name].frames:
                raise UserError(
                    f"{folder / name}.npz covers {len(points)} video frames of "
                    f"{headers[name].frames}; give landmarks for the whole video."
                )
        lines.append(f"landmarks: {len(sequences)} files")
    if prior.source == "provided":
        mesh = read_mesh(_folder(inputs.mesh, "prior", "prior.generate.source"))
        lines.append(f"prior mesh: {len(mesh.vertices)} vertices")
    with atomic(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _check_split(ingest: IngestSettings, sequences: list[str]) -> None:
    held_out = select(sequences, ingest.held_out)
    if not held_out or len(held_out) == len(sequences):
        which = "no sequence is" if not held_out else "all sequences are"
        raise UserError(
            f"{which} held out for testing: capture.ingest.held_out is {list(ingest.held_out)} and "
            f"the sequences are {sequences}; training needs some and evaluation needs some."
        )


def _check_mattes(
    matte: MatteSettings,
    inputs: Inputs,
    capture: Capture,
    sequences: list[str],
    cameras: list[str],
) -> None:
    if matte.backend == "plate":
        bare = [serial for serial in cameras if serial not in capture.plates]
        if bare:
            raise UserError(
                f"{inputs.capture}/sequences/BACKGROUND has no plate for camera {bare[0]}; restore "
                f"image_{bare[0]}.jpg or choose capture.matte.backend rembg."
            )
    if matte.backend == "provided":
        folder = _folder(inputs.mattes, "mattes", "capture.matte.backend")
        for name in sequences:
            for serial in cameras:
                require(folder / name / f"cam_{serial}.mp4", "a provided alpha video")


def _folder(path: Path | None, column: str, setting: str) -> Path:
    if path is None:
        raise UserError(
            f"{setting} is 'provided', but the sample sheet's column '{column}' is empty; fill it "
            "in or choose another value for the setting."
        )
    return require(path, f"what the sample sheet's column '{column}' names")
