"""The licence of each part of an avatar, and whether commercial use is among its terms.

What is told is what the publishers say of their files, and of the images that these were trained on
where they say it. Metrics are no part of an avatar. None of this is legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eavatar.backends import PriorBackend
from eavatar.errors import UserError
from eavatar.face.morphable import describe_morphable_model, forbids_commercial_use
from eavatar.preflight.findings import Examination, Status
from eavatar.preflight.machine import Blocks
from eavatar.settings import BackendSettings, required_backbones
from eavatar.weights import backbone

OWN = "this project's, Apache-2.0"
UNKNOWN = "its licence is not known"


@dataclass(frozen=True)
class Part:
    """Something that an avatar is made with.

    Attributes:
        name: what it is and which.
        licence: of it, or what else there is to say.
        restriction: what speaks against commercial use; empty if nothing does.
    """

    name: str
    licence: str
    restriction: str = ""


def examine_licences(
    found: Examination, blocks: Sequence[Blocks], models: Iterable[Path | None]
) -> None:
    """Tell the licence of each part, and whether all may be used commercially.

    Args:
        found: receives the findings.
        blocks: the settings of each subject.
        models: the morphable models; None for one that the workflow generates.
    """
    parts = [_model_part(path) for path in models]
    for block in blocks:
        choices = {"masks": block.matte, "landmarks": block.landmarks, "prior": block.prior}
        for step, choice in choices.items():
            parts += _backend_parts(step, choice) if choice else ()
        parts += _backbone_parts(block)
    parts = list(dict.fromkeys(parts))
    for part in parts:
        text = f"{part.licence}; {part.restriction}" if part.restriction else part.licence
        found.add(f"licence {part.name}", "warning" if part.restriction == UNKNOWN else "ok", text)
    restrictions = {part.restriction for part in parts if part.restriction}
    reasons = ", ".join(f"{part.name} ({part.restriction})" for part in parts if part.restriction)
    answer = "yes, as far as these parts are concerned"
    if restrictions:
        answer = f"not known: {reasons}" if restrictions == {UNKNOWN} else f"no: {reasons}"
    status: Status = "warning" if UNKNOWN in restrictions else "ok"
    found.add("commercial use", status, f"{answer}; the capture has terms of its own.")


def _model_part(path: Path | None) -> Part:
    name = "morphable model"
    if path is None:
        return Part(name, f"generated, {OWN}")
    try:
        licence, restricted = describe_morphable_model(path), forbids_commercial_use(path)
    except UserError:
        return Part(name, f"{path} cannot be read", UNKNOWN)
    return Part(name, licence, "its licence allows none" if restricted else "")


def _backend_parts(step: str, choice: BackendSettings) -> Iterator[Part]:
    """A part for each different licence of the weights of the backend chosen for a step."""
    backend = choice.chosen
    name = f"{step} {backend.name}"
    if isinstance(backend, PriorBackend) and backend.generator:
        yield Part(name, backend.generator.licence, backend.generator.restriction)
        return
    try:
        weights = backend.weights(choice.own)
    except UserError:
        yield Part(name, "its weights are not known", UNKNOWN)
        return
    if not weights:
        yield Part(name, "made by others, by your own choice" if backend.column else OWN)
    for file in weights:
        yield Part(name, file.licence, file.restriction)


def _backbone_parts(block: Blocks) -> Iterator[Part]:
    """Those of the perceptual loss that a training uses or insists on."""
    trainings = [training for training in (block.splat, block.havatar) if training]
    for net, required in required_backbones(trainings, []).items():
        weights = backbone(net)
        if required or weights.path.is_file():
            yield Part(f"LPIPS {net}", weights.licence, weights.restriction)
