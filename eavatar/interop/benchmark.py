"""The submission for novel views of the NeRSemble benchmark, from avatars of its participants.

    <participant>/<sequence>/cam_<camera>.mp4    1100×1604, H.264, in a zip

of five participants, one sequence each at every recorded timestep, in the three cameras whose
videos are kept back. What differs from how an avatar is measured here:

- The image is the whole frame, not the ingested crop. An avatar draws it with pixels as large as
  those it was trained with, and is resampled: what it has not seen, below the crop, is its guess.
- The background is white, as that of the benchmark's frames.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from eavatar.arrays import Image
from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.capture.nersemble import read_benchmark_cameras
from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.io import Timestep, Tracking, atomic, read_cameras, read_tracking
from eavatar.results import Results

logger = logging.getLogger(__name__)

RATE, QUALITY = 73.0, "14"  # as the benchmark's own writer: frames per second, rate factor
KEPT_BACK = ("222200037", "222200039", "222200046")


@dataclass(frozen=True)
class Wanted:
    """What the benchmark wants of a participant: a sequence and how many timesteps it has."""

    sequence: str
    timesteps: int


PARTICIPANTS = {
    388: Wanted("GLASSES", 1118),
    422: Wanted("EXP-2-eyes", 517),
    443: Wanted("FREE", 1108),
    445: Wanted("EXP-6-tongue-1", 514),
    475: Wanted("HAIR", 259),
}


@dataclass(frozen=True)
class Participant:
    """What a participant's videos are drawn from.

    Attributes:
        number: of the participant.
        avatar: ``splat/<variant>``.
        tracking: of the sequence, every timestep.
        cameras: those kept back, of the benchmark's images.
        magnification: pixels of the ingested image / of the benchmark's.
        ingested: side of the ingested image, pixels.
    """

    number: int
    avatar: Path
    tracking: Tracking
    cameras: dict[str, Camera]
    magnification: float
    ingested: int

    @classmethod
    def open(cls, results: Results, download: Path, variant: str | None) -> Participant:
        """Arguments and errors as of `export_benchmark`."""
        number = _number(results.root)
        wanted = PARTICIPANTS[number]
        tracking = read_tracking(results.tracking(wanted.sequence))
        if len(tracking) != wanted.timesteps:
            raise UserError(
                f"{results.root}: {wanted.sequence} is tracked at {len(tracking)} timesteps, of "
                f"which the benchmark wants {wanted.timesteps}; set capture.ingest.every to 1."
            )
        root = download / "nvs" / f"{number:03d}"
        calibrated = read_benchmark_cameras(root)
        serial, ingested = next(iter(read_cameras(results.cameras).items()))
        for needed in (*KEPT_BACK, serial):
            if needed not in calibrated:
                raise UserError(f"the calibration of {root} lacks camera {needed}; restore it.")
        same = calibrated[serial]
        if not np.allclose(same.world_to_camera, ingested.world_to_camera, atol=1e-6):
            raise UserError(
                f"{root} has camera {serial} elsewhere than {results.cameras}; train on the "
                "benchmark's own capture."
            )
        return cls(
            number,
            results.avatar(variant),
            tracking,
            {name: calibrated[name] for name in KEPT_BACK},
            ingested.intrinsics[0, 0] / same.intrinsics[0, 0],
            ingested.width,
        )


def export_benchmark(
    folders: Sequence[Path], download: Path, variant: str | None = None, output: Path | None = None
) -> Path:
    """Write the submission; without all five participants, a warning says who is missing.

    Args:
        folders: ``results/<participant>`` of each.
        download: the benchmark's data, with ``nvs/<participant>/calibration/camera_params.json``.
        variant: which avatar; None as of `eavatar.results.Results.model`.
        output: the zip; ``nvs_submission.zip`` beside the first folder if None.
    Returns:
        ``output``.
    Raises:
        UserError: no folder is given, one is of no participant or of one twice, a file is missing
            or malformed, or the sequence is not tracked at every timestep.
    """
    if not folders:
        raise UserError("no results are named; give results/<participant> of each participant.")
    opened = [Participant.open(Results.open(folder), download, variant) for folder in folders]
    numbers = [participant.number for participant in opened]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"participants {numbers} are named; name each once.")
    output = output or folders[0].resolve().parent / "nvs_submission.zip"
    with atomic(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for participant in opened:
            _add_videos(participant, archive)
    missing = sorted(PARTICIPANTS.keys() - numbers)
    if missing:
        logger.warning("the submission lacks participants %s.", ", ".join(map(str, missing)))
    print(output)
    return output


@torch.no_grad()
def draw_frame(avatar: Avatar, timestep: Timestep, camera: Camera, magnification: float) -> Image:
    """A frame of a camera's size, (H, W, 3) RGB uint8 on white.

    Args:
        avatar: what is drawn.
        timestep: expression and pose.
        camera: of the frame.
        magnification: of the image that the avatar draws / of the frame: that of its training.
    """
    width, height = (round(magnification * side) for side in (camera.width, camera.height))
    drawn = CameraBatch.of([camera.resize(width, height)], avatar.device)
    expression, rotation, translation = (
        torch.as_tensor(values, dtype=torch.float32, device=avatar.device)
        for values in (timestep.driving, timestep.rotation, timestep.translation)
    )
    fine = avatar(expression, torch.cat([rotation, translation]), drawn).fine.permute(0, 3, 1, 2)
    size = (camera.height, camera.width)
    image = interpolate(fine, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return (255 * image.clamp(0, 1) + 0.5).to(torch.uint8).cpu().numpy()


def _number(root: Path) -> int:
    """The participant whose results a folder holds, by its name."""
    name = root.resolve().name
    if not name.isdigit() or int(name) not in PARTICIPANTS:
        known = ", ".join(map(str, PARTICIPANTS))
        raise UserError(
            f"{root} is named after no participant of the benchmark; name the subject {known}."
        )
    return int(name)


def _add_videos(participant: Participant, archive: zipfile.ZipFile) -> None:
    avatar = load_avatar(participant.avatar).prepare()
    magnification = participant.magnification * avatar.settings.image_size / participant.ingested
    folder = f"{participant.number:03d}/{PARTICIPANTS[participant.number].sequence}"

    def frames(serial: str) -> Iterator[Image]:
        camera, steps = participant.cameras[serial], participant.tracking
        for index in tqdm(range(len(steps)), desc=f"{folder} {serial}", unit="frame"):
            yield draw_frame(avatar, steps[index], camera, magnification)

    with tempfile.TemporaryDirectory() as scratch:
        for serial in participant.cameras:
            path = Path(scratch, f"cam_{serial}.mp4")
            write_video(path, frames(serial), RATE, "yuv420p", QUALITY)
            archive.write(path, f"{folder}/{path.name}")
