"""A complete head mesh in its generator's own frame: ``prior/raw.ply``.

A backend (`eavatar.prior.backends`) is a function of a subject's `PriorJob` that returns the mesh.
Its position, orientation and scale mean nothing until `align_prior` has found them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from eavatar.io import write_mesh
from eavatar.settings import GenerateSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PriorJob:
    """What a backend is given.

    Attributes:
        settings: of the rule; ``settings.own`` are the backend's.
        identity: ``face/identity.npz``, for the neutral landmarks.
        neutral: ``face/neutral.ply``, the fitted neutral mesh, canonical.
        mesh: a head mesh made elsewhere, if any.
    """

    settings: GenerateSettings
    identity: Path
    neutral: Path
    mesh: Path | None


def generate_prior(
    settings: GenerateSettings, identity: Path, neutral: Path, mesh: Path | None, output: Path
) -> Path:
    """Write the prior mesh of a subject, in the frame of whatever made it.

    Args:
        settings: names the backend.
        identity: ``face/identity.npz``, for the neutral landmarks.
        neutral: ``face/neutral.ply``, the fitted neutral mesh, canonical.
        mesh: the ready mesh of the backend `provided`.
        output: ``prior/raw.ply``.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or `provided` is given no mesh.
    """
    raw = settings.chosen.run(PriorJob(settings, identity, neutral, mesh))
    write_mesh(output, raw)
    logger.info("prior from %s: %d vertices", settings.source, len(raw.vertices))
    return output
