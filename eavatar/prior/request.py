"""What a generator is asked: ``prior/request.json`` and the images that it is shown.

The images show the head with the least expression, cut out of its frames. A generator's program
(`eavatar.prior.generators`) reads both in an environment of its own.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from eavatar.cameras import Camera
from eavatar.data.images import read_grey, read_rgb
from eavatar.errors import UserError
from eavatar.io import (
    FORMAT,
    read_cameras,
    write_image,
    write_json,
)
from eavatar.prior.generated import find_weights
from eavatar.prior.portrait import make_portrait
from eavatar.prior.timesteps import Timesteps, read_timesteps
from eavatar.prior.views import ChosenView, choose_cameras, choose_timestep, directions
from eavatar.settings import GenerateSettings

logger = logging.getLogger(__name__)

ENOUGH = 1024  # pixels of an image's side: generators see half of that


@dataclass(frozen=True)
class RequestedView:
    """An entry of ``views`` in ``request.json``.

    Attributes:
        name: front, left, back or right; the subject's sides.
        image: file, beside the request.
        sequence: of the frame.
        timestep: of the frame.
        camera: of the frame.
        degrees_off: between where the camera is and where the view should be from.
        expression: root mean square of the timestep's coefficients, in standard deviations.
        size: side of the image, pixels.
    """

    name: str
    image: str
    sequence: str
    timestep: int
    camera: str
    degrees_off: float
    expression: float
    size: int


def prepare_prior(settings: GenerateSettings, capture: Path, face: Path, output: Path) -> Path:
    """Write ``request.json`` and ``images/<view>.png`` for the generator of the settings.

    Args:
        settings: name the generator, and what it is asked.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        output: ``results/<subject>/prior``.

    Returns:
        ``output/request.json``.

    Raises:
        UserError: the source has no generator, a file is missing or malformed, no camera sees the
            face, or a mask shows no head.
    """
    generator = settings.chosen.generator
    if generator is None:
        raise UserError(
            f"prior.generate.source is '{settings.source}', which is shown no images; run "
            "generate-prior at once."
        )
    cameras = read_cameras(capture / "cameras.json")
    found = read_timesteps(capture, face, tuple(cameras))
    centres = np.stack([camera.centre for camera in cameras.values()])
    seen = directions(centres, found.rotation, found.translation)
    step = choose_timestep(found.expression, seen, found.usable)
    wanted = generator.views(settings.own)
    chosen = choose_cameras(wanted, seen[step], found.usable[step])
    if not chosen or chosen[0].name != wanted[0].name:
        raise UserError(
            f"no camera in {capture / 'cameras.json'} is within {wanted[0].tolerance:.0f}° of the "
            "front of the face at any timestep; give a mesh of your own (prior.generate.source: "
            "provided), or set prior.generate.source to template."
        )
    views = [
        _write_view(capture, cameras, view, found, step, settings.own.neck, output)
        for view in chosen
    ]
    asked = {
        "format": FORMAT,
        "source": settings.source,
        "weights": str(find_weights(settings.own.weights).absolute()),
        "settings": settings.own.model_dump(mode="json", exclude={"weights"}),
        "views": [asdict(view) for view in views],
    }
    return write_json(output / "request.json", asked)


def _write_view(
    capture: Path,
    cameras: dict[str, Camera],
    view: ChosenView,
    found: Timesteps,
    step: int,
    neck: float,
    output: Path,
) -> RequestedView:
    """Cut the head out of a frame and write it."""
    serial, (sequence, timestep) = list(cameras)[view.camera], found.keys[step]
    frame = capture / sequence / serial / f"{timestep:05d}.jpg"
    mask = capture / "masks" / sequence / serial / f"{timestep:05d}.png"
    image, alpha = read_rgb(frame), read_grey(mask)
    try:
        portrait = make_portrait(image, alpha, cameras[serial], found.head(step), neck)
    except UserError as error:
        raise UserError(f"{mask}: {error}") from error
    name = f"images/{view.name}.png"
    write_image(output / name, cv2.cvtColor(portrait, cv2.COLOR_RGBA2BGRA))
    strength = float(np.sqrt((found.expression[step] ** 2).mean()))
    logger.info(
        "%s: %s, timestep %d, camera %s, %.0f° off, expression %.2f, %d pixels",
        view.name, sequence, timestep, serial, view.off, strength, len(portrait),
    )  # fmt: skip
    if len(portrait) < ENOUGH:
        logger.info("a larger capture.ingest.image_size would show %s with more detail", view.name)
    return RequestedView(
        view.name,
        name,
        sequence,
        timestep,
        serial,
        round(view.off, 1),
        round(strength, 3),
        len(portrait),
    )
