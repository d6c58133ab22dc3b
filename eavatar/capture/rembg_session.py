"""The networks of the rembg package, from model files that are there already.

Nothing is ever downloaded or sent: rembg fetches a model that it does not find and some of its
sessions are services, so both are refused here before it is asked.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eavatar.capture.video import Image
from eavatar.errors import UserError

MODELS = (
    "u2net", "u2netp", "u2net_human_seg", "silueta", "isnet-general-use", "isnet-anime",
    "birefnet-general", "birefnet-general-fp16", "birefnet-general-lite", "birefnet-portrait",
    "birefnet-dis", "birefnet-hrsod", "birefnet-cod", "birefnet-massive", "bria-rmbg",
)  # fmt: skip
SERVICES = ("withoutbg", "atlascloud")
RELEASE = "https://github.com/danielgatis/rembg/releases/tag/v0.0.0"
# rembg stretches each answer to the whole range. A person's should be black and white but for the
# edge, that of an empty image grey all over; the share has not been tried on published networks.
UNDECIDED = (26, 229)
MOST_UNDECIDED = 0.25

_lock = threading.Lock()


def segment(session: Any, image: Image) -> Image:
    """(S, S) alpha of a BGR frame (S, S, 3); all zero where the network finds nothing."""
    from rembg import remove

    with np.errstate(invalid="ignore"):  # of a constant answer, 0 / 0
        answer = remove(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), session=session, only_mask=True)
    alpha = np.asarray(answer, np.uint8)
    undecided = (alpha >= UNDECIDED[0]) & (alpha <= UNDECIDED[1])
    return np.zeros_like(alpha) if undecided.mean() > MOST_UNDECIDED else alpha


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
            f"{RELEASE}, or set capture.matte.backend to plate."
        ) from error


def find_model(name: str) -> Path:
    """The file of a rembg model, found as rembg itself would: it then has nothing to download.

    ``U2NET_HOME`` wins over ``REMBG_HOME``, ``XDG_DATA_HOME``/rembg and ~/.rembg; in that folder it
    is models/<name>/<name>.onnx, or <name>.onnx in the flat folder of earlier versions.

    Raises:
        UserError: as `open_session`.
    """
    if name in SERVICES:
        raise UserError(
            f"the rembg model '{name}' sends every image to a service on the internet and is not "
            f"supported; set capture.matte.rembg_model to one of {', '.join(MODELS)}."
        )
    if name not in MODELS:
        raise UserError(
            f"the setting capture.matte.rembg_model is '{name}', but must be one of "
            f"{', '.join(MODELS)}."
        )
    try:
        from rembg.sessions import sessions_class
    except (ImportError, SystemExit) as error:  # rembg exits if onnxruntime is missing
        raise UserError(
            "the packages rembg and onnxruntime are needed by the rembg backend; install them, or "
            "set capture.matte.backend to plate."
        ) from error
    (session,) = [session for session in sessions_class if session.name() == name]
    found = session.resolve_existing(f"{name}.onnx")
    if found is None or not Path(found).is_file():
        raise UserError(
            f"the rembg model '{name}' is missing: get it from {RELEASE} and put it at "
            f"{Path(session.model_dir(), f'{name}.onnx')} (REMBG_HOME or U2NET_HOME name another "
            "folder), or set capture.matte.backend to plate."
        )
    return Path(found)
