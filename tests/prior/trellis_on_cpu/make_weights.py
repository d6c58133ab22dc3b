"""A weight folder of TRELLIS with random networks, in the published format.

    <the environment's python> make_weights.py <weight folder> <folder for TORCH_HOME> <size>

The size is `tiny`: structures of 16³ voxels and meshes of 64³ cells, a quarter of the published
ones on each axis; or `published`: all widths and depths, and half precision, as published.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from trellis import models
from trellis.dinov2.hub import backbones

LATENT = 8


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    Attributes:
        image_model: DINOv2's name for the network that reads images.
        image_channels: what it gives for each patch.
        resolution: voxels of a structure on each axis.
        width, blocks, heads: of the transformers of both flow models.
        detail: channels of the latent's flow model before its patches are put together.
        structure: channels of the structure's decoder.
        mesh_width, mesh_blocks, mesh_heads: of the mesh's decoder; an eighth of the width still
            has 32 groups to normalise.
        half: in half precision.
    """

    image_model: str
    image_channels: int
    resolution: int
    width: int
    blocks: int
    heads: int
    detail: int
    structure: tuple[int, ...]
    mesh_width: int
    mesh_blocks: int
    mesh_heads: int
    half: bool


SIZES = {
    "tiny": Size("dinov2_vits14_reg", 384, 16, 64, 1, 2, 32, (32, 16), 256, 1, 4, False),
    "published": Size(
        "dinov2_vitl14_reg", 1024, 64, 1024, 24, 16, 128, (512, 128, 32), 768, 12, 12, True
    ),
}


def networks(size: Size) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and arguments of each."""
    precision = {"use_fp16": size.half}
    flow = {
        "in_channels": LATENT,
        "out_channels": LATENT,
        "cond_channels": size.image_channels,
        "model_channels": size.width,
        "num_blocks": size.blocks,
        "num_heads": size.heads,
        "qk_rms_norm": True,
        **precision,
    }
    coarse = size.resolution // 2 ** (len(size.structure) - 1)
    structure = {"resolution": coarse, "patch_size": 1}
    detail = {"resolution": size.resolution, "patch_size": 2, "io_block_channels": [size.detail]}
    decoder = {
        "out_channels": 1,
        "latent_channels": LATENT,
        "num_res_blocks": 2,
        "channels": size.structure,
        **precision,
    }
    mesh = {
        "resolution": size.resolution,
        "latent_channels": LATENT,
        "model_channels": size.mesh_width,
        "num_blocks": size.mesh_blocks,
        "num_heads": size.mesh_heads,
        "representation_config": {"use_color": True},
        **precision,
    }
    return {
        "sparse_structure_flow_model": ("SparseStructureFlowModel", {**structure, **flow}),
        "sparse_structure_decoder": ("SparseStructureDecoder", decoder),
        "slat_flow_model": ("SLatFlowModel", {**detail, **flow}),
        "slat_decoder_mesh": ("SLatMeshDecoder", mesh),
    }


SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 25, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
}


def main(folder: Path, torch_home: Path, size: Size) -> None:
    torch.manual_seed(0)
    (folder / "ckpts").mkdir(parents=True)
    parts = networks(size)
    for name, (kind, arguments) in parts.items():
        model = getattr(models, kind)(**{**arguments, "use_fp16": False})
        randomise(name, model)
        place = folder / "ckpts" / name
        place.with_suffix(".json").write_text(json.dumps({"name": kind, "args": arguments}))
        state = (model.half() if size.half else model).state_dict()
        save_file(state, place.with_suffix(".safetensors"))
    image_weights = torch_home / "hub" / "checkpoints" / f"{size.image_model}4_pretrain.pth"
    image_weights.parent.mkdir(parents=True)
    image_model = getattr(backbones, size.image_model)(pretrained=False)
    torch.save(image_model.state_dict(), image_weights)
    code = torch_home / "hub" / "facebookresearch_dinov2_main" / "hubconf.py"
    code.parent.mkdir()
    code.touch()  # the packaged TRELLIS has DINOv2's code in it, the published one reads it here
    content = {
        "models": {name: f"ckpts/{name}" for name in parts},
        "sparse_structure_sampler": SAMPLER,
        "slat_sampler": SAMPLER,
        "slat_normalization": {"mean": [0.0] * LATENT, "std": [1.0] * LATENT},
        "image_cond_model": size.image_model,
        "model_path": str(image_weights.absolute()),  # which the packaged TRELLIS alone reads
    }
    index = {"name": "TrellisImageTo3DPipeline", "args": content}
    (folder / "pipeline.json").write_text(json.dumps(index))


@torch.no_grad()
def randomise(name: str, model: torch.nn.Module) -> None:
    """Weights that make something of noise, where the first ones are zero."""
    if name == "sparse_structure_decoder":
        values = model(torch.randn(1, LATENT, 16, 16, 16))
        model.out_layer[-1].bias.data -= values.quantile(0.96)  # 4 % of the voxels are on
    if name == "slat_decoder_mesh":
        torch.nn.init.normal_(model.out_layer.weight, std=0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), SIZES[sys.argv[3]])
