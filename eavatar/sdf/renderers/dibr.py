"""The mesh by kaolin's differentiable rasteriser, with which GHA trains its mesh."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from eavatar.backends import RendererBackend
from eavatar.errors import UserError

if TYPE_CHECKING:
    import torch

    from eavatar.sdf.surface import SurfaceImages

INSTALL = (
    "pip install kaolin==0.18.0 -f "
    "https://nvidia-kaolin.s3.us-east-2.amazonaws.com/torch-<version>_cu<cuda>.html"
)


def prepare(device: torch.device) -> Callable[..., SurfaceImages]:
    """The function that draws.

    Raises:
        UserError: there is no CUDA device, or kaolin is not installed.
    """
    if device.type != "cuda":
        raise UserError(
            "sdf.renderer 'dibr' needs a CUDA device and there is none; "
            "set sdf.renderer to 'splats', which runs everywhere."
        )
    # The package of this name on PyPI is an empty placeholder.
    if find_spec("kaolin") is None or find_spec("kaolin.render") is None:
        raise UserError(
            f"sdf.renderer 'dibr' needs kaolin, which is not installed: `{INSTALL}` "
            "(torch up to 2.8), or set sdf.renderer to 'splats', which does not need it."
        )
    from eavatar.sdf.dibr import render_mesh

    return render_mesh


BACKEND = RendererBackend(
    name="dibr",
    run=prepare,
    instead="set sdf.renderer to splats",
    packages=("kaolin.render.mesh",),
    install=f"install NVIDIA's wheel (torch up to 2.8): `{INSTALL}`",
    gpu="needed",
)
