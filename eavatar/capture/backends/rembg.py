"""Masks from a pretrained segmentation network of the rembg package, each image on its own.

Nothing is ever downloaded or sent: rembg fetches a model that it does not find and some of its
sessions are services, so both are refused here before it is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from eavatar.backends import MattingBackend, WeightFile
from eavatar.errors import UserError
from eavatar.settings import Settings

if TYPE_CHECKING:
    from eavatar.arrays import Image
    from eavatar.capture.matting import Shot

MODELS = (
    "u2net", "u2netp", "u2net_human_seg", "silueta", "isnet-general-use", "isnet-anime",
    "birefnet-general", "birefnet-general-fp16", "birefnet-general-lite", "birefnet-portrait",
    "birefnet-dis", "birefnet-hrsod", "birefnet-cod", "birefnet-massive", "bria-rmbg",
)  # fmt: skip
SERVICES = ("withoutbg", "atlascloud")
RELEASE = "https://github.com/danielgatis/rembg/releases/tag/v0.0.0"
HOMES = "REMBG_HOME or U2NET_HOME name another folder"
INSTEAD = "set capture.matte.backend to plate"
MD5 = {  # published with the models
    "u2net": "60024c5c889badc19c04ad937298a77b",
    "u2net_human_seg": "c09ddc2e0104f800e3e1bb4652583d1f",
    "birefnet-portrait": "c3a64a6abf20250d090cd055f12a3b67",
}
NON_COMMERCIAL = "non-commercial use"
LICENCES = {  # by the beginnings of the models' names
    "u2net": "Apache-2.0", "isnet": "Apache-2.0", "birefnet": "MIT", "bria": NON_COMMERCIAL,
}  # fmt: skip
# rembg stretches each answer to the whole range. A person's should be black and white but for the
# edge, that of an empty image grey all over; the limit has not been tried on published networks.
UNDECIDED = (26, 229)
MAX_UNDECIDED = 0.25  # fraction of an image's pixels

_lock = threading.Lock()


class RembgSettings(Settings):
    """`capture.matte.rembg`."""

    model: str = Field(description="name of the rembg model, e.g. birefnet-portrait")


def matte_by_rembg(shot: Shot) -> Iterator[Image]:
    """The masks of one camera, in the order of time."""
    from eavatar.capture.matting import steady

    session = open_session(shot.settings.own.model)
    return steady(shot.images(), (segment(session, image) for image in shot.images()))


def segment(session: Any, image: Image) -> Image:
    """(S, S) mask of a BGR frame (S, S, 3); all zero where the network finds nothing."""
    import cv2
    import numpy as np
    from rembg import remove

    with np.errstate(invalid="ignore"):  # of a constant answer, 0 / 0
        answer = remove(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), session=session, only_mask=True)
    mask = np.asarray(answer, np.uint8)
    undecided = (mask >= UNDECIDED[0]) & (mask <= UNDECIDED[1])
    return np.zeros_like(mask) if undecided.mean() > MAX_UNDECIDED else mask


def open_session(name: str) -> Any:
    """The session of a model, the same for all threads.

    Raises:
        UserError: the model is a service or unknown, its file is missing or not readable, or a
            package is missing.
    """
    with _lock:  # the cache alone would let two threads load the model twice
        return _open_session(name)


@lru_cache(maxsize=1)
def _open_session(name: str) -> Any:
    path = find_model(name)
    from rembg import new_session

    try:
        return new_session(name)
    except Exception as error:  # onnxruntime's errors have no class in common
        raise UserError(
            f"{path} is not a readable ONNX file of the rembg model '{name}'; get it again from "
            f"{RELEASE}, or {INSTEAD}."
        ) from error


def find_model(name: str) -> Path:
    """The file of a rembg model that exists.

    Raises:
        UserError: as `open_session`.
    """
    path = model_path(name)
    if not path.is_file():
        raise UserError(
            f"the rembg model '{name}' is missing: get it from {RELEASE} and put it at {path} "
            f"({HOMES}), or {INSTEAD}."
        )
    return path


def model_path(name: str) -> Path:
    """Where rembg itself looks for a model, so that it then has nothing to download.

    ``U2NET_HOME`` wins over ``REMBG_HOME``, ``XDG_DATA_HOME``/rembg and ~/.rembg; in that folder it
    is models/<name>/<name>.onnx, or <name>.onnx in the flat folder of earlier versions.

    Raises:
        UserError: the model is a service or unknown, or a package is missing.
    """
    if name in SERVICES:
        raise UserError(
            f"the rembg model '{name}' sends every image to a service on the internet and is not "
            f"supported; set capture.matte.rembg.model to one of {', '.join(MODELS)}."
        )
    if name not in MODELS:
        raise UserError(
            f"the setting capture.matte.rembg.model is '{name}', but must be one of "
            f"{', '.join(MODELS)}."
        )
    try:
        from rembg.sessions import sessions_class
    except (ImportError, SystemExit) as error:  # rembg exits if onnxruntime is missing
        raise UserError(
            "the packages rembg and onnxruntime are needed by the rembg backend; install them, or "
            f"{INSTEAD}."
        ) from error
    (session,) = [session for session in sessions_class if session.name() == name]
    found = session.resolve_existing(f"{name}.onnx")
    return Path(found or Path(session.model_dir(), f"{name}.onnx"))


def weights(settings: RembgSettings) -> tuple[WeightFile, ...]:
    """The one file of the model; `UserError` as `model_path`."""
    model = settings.model
    licences = [licence for start, licence in LICENCES.items() if model.startswith(start)]
    licence = licences[0] if licences else "see the release"
    restriction = "" if licences else "its licence is not known"
    if licence == NON_COMMERCIAL:
        restriction = "its licence allows none"
    return (
        WeightFile(
            model_path(model),
            f"{RELEASE} (model {model})",
            licence,
            digest=f"md5:{MD5[model]}" if model in MD5 else None,
            restriction=restriction,
            note=f"{HOMES}; if it is your own, set MODEL_CHECKSUM_DISABLED=1",
        ),
    )


def load(settings: RembgSettings) -> Any:
    """The session of the model; see `open_session`."""
    return open_session(settings.model)


BACKEND = MattingBackend(
    name="rembg",
    run=matte_by_rembg,
    instead=INSTEAD,
    settings=RembgSettings,
    weights=weights,
    load=load,
    packages=("onnxruntime", "rembg"),
)
