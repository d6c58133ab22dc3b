"""The surface as one Gaussian per vertex, by the rasteriser of stage II; runs everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eavatar.backends import RendererBackend

if TYPE_CHECKING:
    import torch

    from eavatar.sdf.surface import SurfaceImages


def prepare(device: torch.device) -> Callable[..., SurfaceImages]:
    """The function that draws."""
    from eavatar.sdf.surface import render_surface

    return render_surface


BACKEND = RendererBackend(
    name="splats", run=prepare, instead="set sdf.renderer to dibr", capturable=True
)
