"""Hunyuan3D-2mv, a mesh from the head's front, left, back and right: for rigs all around.

Its licence holds neither in the European Union nor in the United Kingdom nor in South Korea, and
its meshes may not train other generative models. Its code, hy3dgen, runs in an environment of its
own: envs/hunyuan3d.yaml.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from eavatar.backends import Generator, PriorBackend, WantedView, WeightFile
from eavatar.prior.generated import (
    PROGRAMS,
    GeneratorSettings,
    find_weights,
    open_safetensors,
    take_generated,
)

MODEL = "https://huggingface.co/tencent/Hunyuan3D-2mv"
LICENCE = "Tencent Hunyuan community licence: not for the EU, the UK and South Korea"
FOLDER = "hunyuan3d-dit-v2-mv"
# The subject's own sides. hy3dgen says "front clockwise 90" of left, which can be read either way.
YAWS = {"front": 0, "left": 90, "back": 180, "right": -90}
TOLERANCE = 30  # degrees: it takes its four views to be at right angles

View = Literal["front", "left", "back", "right"]


def _front_first(views: list[View]) -> list[View]:
    if views[0] != "front" or len(set(views)) < len(views):
        raise ValueError("each view must stand once, and front first")
    return views


class Hunyuan3dSettings(GeneratorSettings):
    """`prior.generate.hunyuan3d`; its licence: not for the EU, the UK and South Korea."""

    views: Annotated[list[View], Field(min_length=1), AfterValidator(_front_first)] = Field(
        description="that it is shown where a camera is within 30°; front, the first, must be there"
    )
    steps: int = Field(ge=1, description="of the sampler")
    guidance: float = Field(ge=0, description="strength of classifier-free guidance")
    octree_resolution: int = Field(ge=16, description="cells of the mesh on each axis")


def views(settings: Hunyuan3dSettings) -> tuple[WantedView, ...]:
    """Those of the settings."""
    return tuple(WantedView(name, YAWS[name], TOLERANCE) for name in settings.views)


def weights(settings: Hunyuan3dSettings) -> tuple[WeightFile, ...]:
    """The network and how it is built; DINOv2's weights are in the same file."""
    folder = find_weights(settings.weights) / FOLDER
    note = f"the folder {FOLDER}, within the one that prior.generate.hunyuan3d.weights names"
    return (
        WeightFile(folder / "config.yaml", MODEL, LICENCE, note=note),
        WeightFile(
            folder / "model.fp16.safetensors", MODEL, LICENCE, note=note, open=open_safetensors
        ),
    )


BACKEND = PriorBackend(
    name="hunyuan3d",
    run=take_generated,
    instead="set prior.generate.source to template",
    settings=Hunyuan3dSettings,
    weights=weights,
    gpu="needed",
    generator=Generator(PROGRAMS / "run_hunyuan3d.py", views, 8, LICENCE, "not everywhere"),
)
