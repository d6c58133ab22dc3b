"""A weight folder of TRELLIS with tiny random networks, in the published format.

    <python of the tests' environment> make_weights.py <weight folder> <folder for TORCH_HOME>

Structure of 16³ voxels and meshes of 64³ cells: a quarter of the published ones on each axis.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from trellis import models
from trellis.dinov2.hub import backbones

IMAGE_MODEL, IMAGE_CHANNELS = "dinov2_vits14_reg", 384
LATENT, WIDTH = 8, 64
MESH_WIDTH = 256  # an eighth of it still has 32 groups to normalise
STRUCTURE = {"resolution": 8, "in_channels": LATENT, "out_channels": LATENT, "patch_size": 1}
DETAIL = {"resolution": 16, "in_channels": LATENT, "out_channels": LATENT, "patch_size": 2}
BLOCKS = {"model_channels": WIDTH, "cond_channels": IMAGE_CHANNELS, "num_blocks": 1, "num_heads": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparse_structure_flow_model": ("SparseStructureFlowModel", {**STRUCTURE, **BLOCKS}),
    "sparse_structure_decoder": (
        "SparseStructureDecoder",
        {"out_channels": 1, "latent_channels": LATENT, "num_res_blocks": 1, "channels": [32, 16]},
    ),
    "slat_flow_model": ("SLatFlowModel", {**DETAIL, **BLOCKS, "io_block_channels": [32]}),
    "slat_decoder_mesh": (
        "SLatMeshDecoder",
        {
            "resolution": 16,
            "model_channels": MESH_WIDTH,
            "latent_channels": LATENT,
            "num_blocks": 1,
            "num_heads": 4,
            "representation_config": {"use_color": True},
        },
    ),
}
SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 25, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
}


def main(folder: Path, torch_home: Path) -> None:
    torch.manual_seed(0)
    (folder / "ckpts").mkdir(parents=True)
    for name, (kind, arguments) in NETWORKS.items():
        model = getattr(models, kind)(**arguments)
        randomise(name, model)
        place = folder / "ckpts" / name
        place.with_suffix(".json").write_text(json.dumps({"name": kind, "args": arguments}))
        save_file(model.state_dict(), place.with_suffix(".safetensors"))
    image_weights = torch_home / "hub" / "checkpoints" / f"{IMAGE_MODEL}4_pretrain.pth"
    image_weights.parent.mkdir(parents=True)
    torch.save(getattr(backbones, IMAGE_MODEL)(pretrained=False).state_dict(), image_weights)
    code = torch_home / "hub" / "facebookresearch_dinov2_main" / "hubconf.py"
    code.parent.mkdir()
    code.touch()  # the packaged TRELLIS has DINOv2's code in it, the published one reads it here
    arguments = {
        "models": {name: f"ckpts/{name}" for name in NETWORKS},
        "sparse_structure_sampler": SAMPLER,
        "slat_sampler": SAMPLER,
        "slat_normalization": {"mean": [0.0] * LATENT, "std": [1.0] * LATENT},
        "image_cond_model": IMAGE_MODEL,
        "model_path": str(image_weights.absolute()),  # which the packaged TRELLIS alone reads
    }
    content = {"name": "TrellisImageTo3DPipeline", "args": arguments}
    (folder / "pipeline.json").write_text(json.dumps(content))


@torch.no_grad()
def randomise(name: str, model: torch.nn.Module) -> None:
    """Weights that make something of noise, where the first ones are zero."""
    if name == "sparse_structure_decoder":
        values = model(torch.randn(1, LATENT, *[STRUCTURE["resolution"]] * 3))
        model.out_layer[-1].bias.data -= values.quantile(0.96)  # 4 % of the voxels are on
    if name == "slat_decoder_mesh":
        torch.nn.init.normal_(model.out_layer.weight, std=0.5)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
