"""Files of network weights: that they are there, whole, and those that the run expects.

Nothing is downloaded. Every file is opened as the run will open it, and read whole where a digest
of it is published: some seconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eavatar.backends import Backend, WeightFile
from eavatar.preflight.findings import Examination, Status
from eavatar.weights import Net, backbone

SHA256_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")  # torch.hub's rule for names of weight files

Choice = tuple[Backend, Any]
"""A backend and its own settings."""


def examine_backends(found: Examination, choices: Iterable[Choice]) -> None:
    """Look at the weights that backends read with their own settings."""
    for backend, own in choices:
        item, faults = f"weights {backend.name}", len(found.faults)
        files = found.attempt(item, None, backend.weights, own) or ()
        for weights in files:
            examine_weights(found, weights, backend.instead, "missing", "warning")
        if files and len(found.faults) == faults:
            _load(found, item, backend, own)


def examine_backbones(found: Examination, required: Mapping[Net, bool]) -> None:
    """Look at the backbones of LPIPS.

    Args:
        found: receives the findings.
        required: those that are used, and whether the absence of each stops a run.
    """
    for net, needed in sorted(required.items()):
        gone: Status = "missing" if needed else "warning"
        instead, faults = "set lpips_required to false to do without", len(found.faults)
        weights = backbone(net)
        examine_weights(found, weights, instead, gone, "wrong")
        packages = find_spec("lpips") and find_spec("torchvision")  # not where `check` runs alone
        if weights.path.is_file() and packages and len(found.faults) == faults:
            import torch

            from eavatar.training.perceptual import Perceptual

            device = torch.device("cpu")
            found.attempt(f"weights {weights.path.name}", None, Perceptual.load, net, device)


def examine_weights(
    found: Examination, weights: WeightFile, instead: str, gone: Status, differs: Status
) -> None:
    """A weight file: that it exists, can be opened and is the published one.

    Args:
        found: receives the finding.
        weights: the file; where it names no digest, the first digits of its SHA-256 may stand in
            its name.
        instead: what to do instead of having the file.
        gone: the status if it does not exist.
        differs: the status if it is another file; a warning where a user may have reason for that.
    """
    path, item = weights.path, f"weights {weights.path.name}"
    get = f"download {weights.source} ({weights.licence})"
    note = f" ({weights.note})" if weights.note else ""
    if not path.is_file():
        text = f"{path} does not exist; {get} and put it there{note}, or {instead}."
        found.add(item, gone, text)
        return
    fault = _opening_fault(weights)
    if fault:
        text = f"{path} cannot be opened ({fault}): it is damaged or no file of weights; "
        found.add(item, "wrong", f"{text}{get} again{note}, or {instead}.")
        return
    named = SHA256_IN_NAME.search(path.name)
    digest = weights.digest or (f"sha256:{named[1]}" if named else None)
    if digest and not _digest(path, digest.partition(":")[0]).startswith(digest):
        text = f"{path} is damaged or another file than the published one, whose digest is "
        found.add(item, differs, f"{text}{digest}; {get} again{note}, or {instead}.")
        return
    checked = f"{digest} as published" if digest else "no checksum is published"
    size = path.stat().st_size / 2**20
    found.add(item, "ok", f"{path}, {size:.1f} MiB, {checked}; {weights.licence}")


def _load(found: Examination, item: str, backend: Backend, own: Any) -> None:
    """Load all of a backend's weights, where what it needs can be imported."""
    try:
        found.attempt(item, None, backend.load, own)
    except ImportError as error:  # packages have findings of their own
        found.add(item, "warning", f"its files were opened, but not by {backend.name} ({error}).")


def _opening_fault(weights: WeightFile) -> str | None:
    """Why a file cannot be opened; None if it can, or if nothing here can tell."""
    if weights.open is None:
        return None
    try:
        weights.open(weights.path)
    except ImportError:
        return None
    except Exception as error:  # torch's errors have no class in common
        return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return None


def _digest(path: Path, algorithm: str) -> str:
    """The digest of a file, as in ``sha256:619a3168…``."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
