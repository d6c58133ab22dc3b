"""A weight folder of Hunyuan3D-2mv with tiny random networks, in the published format.

<python of an environment with hy3dgen> make_weights.py <weight folder>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from hy3dgen.shapegen.pipelines import instantiate_from_config
from safetensors.torch import save_file

WIDTH, LATENTS, CHANNELS = 64, 32, 16
IMAGES = {
    "hidden_size": WIDTH,
    "image_size": 56,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
}
MODELS = "hy3dgen.shapegen.models"
CONFIG: dict[str, dict[str, Any]] = {
    "model": {
        "target": f"{MODELS}.Hunyuan3DDiT",
        "params": {
            "in_channels": CHANNELS,
            "context_in_dim": WIDTH,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [WIDTH // 2],
        },
    },
    "vae": {
        "target": f"{MODELS}.ShapeVAE",
        "params": {
            "num_latents": LATENTS,
            "embed_dim": CHANNELS,
            "width": WIDTH,
            "heads": 2,
            "num_decoder_layers": 1,
        },
    },
    "conditioner": {
        "target": f"{MODELS}.SingleImageEncoder",
        "params": {
            "main_image_encoder": {
                "type": "DinoImageEncoderMV",
                "kwargs": {"config": IMAGES, "image_size": 56},
            }
        },
    },
    "image_processor": {
        "target": "hy3dgen.shapegen.preprocessors.MVImageProcessorV2",
        "params": {"size": 64},
    },
    "scheduler": {
        "target": "hy3dgen.shapegen.schedulers.FlowMatchEulerDiscreteScheduler",
        "params": {"num_train_timesteps": 1000},
    },
}
NETWORKS = ("model", "vae", "conditioner")


def main(folder: Path) -> None:
    torch.manual_seed(0)
    place = folder / "hunyuan3d-dit-v2-mv"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    tensors = {}
    for name in NETWORKS:
        for key, value in instantiate_from_config(CONFIG[name]).state_dict().items():
            tensors[f"{name}.{key}"] = value.contiguous()
    # the decoded values lie around zero, which is where the surface is
    save_file(tensors, place / "model.fp16.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
