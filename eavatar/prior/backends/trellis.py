"""TRELLIS, a mesh from one image of the head or a few; its settings and weights.

Its code, published as microsoft/TRELLIS, runs in an environment of its own: envs/trellis.yaml.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from eavatar.backends import Generator, PriorBackend, WantedView, WeightFile
from eavatar.prior.generated import (
    PROGRAMS,
    GeneratorSettings,
    find_weights,
    open_safetensors,
    take_generated,
)
from eavatar.settings import Settings
from eavatar.weights import checkpoints_folder, open_tensors

MODEL = "https://huggingface.co/microsoft/TRELLIS-image-large"
DINOV2 = "https://github.com/facebookresearch/dinov2"
DINOV2_WEIGHTS = "https://dl.fbaipublicfiles.com/dinov2"
SIDES = (WantedView("left", 90, 60), WantedView("right", -90, 60))  # 30° from the front at least


class SamplerSettings(Settings):
    """Of one of TRELLIS' two samplers."""

    steps: int = Field(ge=1, description="of the sampler")
    guidance: float = Field(ge=0, description="strength of classifier-free guidance")


class TrellisSettings(GeneratorSettings):
    """`prior.generate.trellis`."""

    side_views: Literal["none", "stochastic", "multidiffusion"] = Field(
        description="whether it is shown the head from its sides, too, and how TRELLIS mixes the "
        "images: one in each step, or all in each"
    )
    structure: SamplerSettings = Field(description="which voxels the surface passes")
    latent: SamplerSettings = Field(description="the surface in them")


def views(settings: TrellisSettings) -> tuple[WantedView, ...]:
    """The front, whichever camera is nearest to it, and the sides if they are asked for."""
    return (WantedView("front", 0, 60), *(SIDES if settings.side_views != "none" else ()))


def weights(settings: TrellisSettings) -> tuple[WeightFile, ...]:
    """The files that ``pipeline.json`` names, and DINOv2's code and weights in torch's folder."""
    folder = find_weights(settings.weights)
    note = "the whole folder, about 3 GB, named in prior.generate.trellis.weights"
    index = WeightFile(folder / "pipeline.json", MODEL, "MIT", note=note, open=_read_index)
    try:
        named = _read_index(index.path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Missing or damaged, which a look at the file says.
        return (index,)
    parts = [
        WeightFile(folder / f"{place}{suffix}", MODEL, "MIT", note=note, open=reader)
        for place in named.models
        for suffix, reader in ((".json", _read_json), (".safetensors", open_safetensors))
    ]
    return (index, *parts, *_image_model(named.image_model))


def _image_model(name: str) -> tuple[WeightFile, WeightFile]:
    """Code and weights of DINOv2, where torch's hub looks for them."""
    base = name.removesuffix("_reg")
    file = f"{name}4_pretrain.pth" if name != base else f"{name}_pretrain.pth"
    hub = checkpoints_folder().parent
    code = WeightFile(
        hub / "facebookresearch_dinov2_main" / "hubconf.py",
        DINOV2,
        "Apache-2.0",
        note=f"git clone it as {hub / 'facebookresearch_dinov2_main'}",
    )
    source = f"{DINOV2_WEIGHTS}/{base}/{file}"
    return code, WeightFile(hub / "checkpoints" / file, source, "Apache-2.0", open=open_tensors)


def _read_json(path: Path) -> object:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Index:
    """What ``pipeline.json`` names.

    Attributes:
        models: files without suffix, within the folder.
        image_model: DINOv2's name for the network that reads images.
    """

    models: tuple[str, ...]
    image_model: str


def _read_index(path: Path) -> Index:
    arguments = json.loads(path.read_text())["args"]
    return Index(tuple(arguments["models"].values()), str(arguments["image_cond_model"]))


BACKEND = PriorBackend(
    name="trellis",
    run=take_generated,
    instead="set prior.generate.source to template",
    settings=TrellisSettings,
    weights=weights,
    gpu="needed",
    generator=Generator(
        PROGRAMS / "run_trellis.py",
        views,
        16,
        "MIT, FlexiCubes NVIDIA's own",
        "the terms of FlexiCubes in its code",
    ),
)
