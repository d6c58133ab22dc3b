"""Hunyuan3D-2mv in an environment of its own, envs/hunyuan3d.yaml: see `process`."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from PIL import Image
from process import Generator, Surface, main

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

SUBFOLDER, VARIANT = "hunyuan3d-dit-v2-mv", "fp16"
CHUNK = 20000  # points that are decoded at a time: about 1 GB


def load(request: dict[str, Any], device: Any) -> Any:
    """The pipeline of a weight folder, on the device; half precision on a GPU."""
    import torch
    from hy3dgen.shapegen import Hunyuan3DDiTFlowMatchingPipeline

    return Hunyuan3DDiTFlowMatchingPipeline.from_pretrained(
        request["weights"],
        subfolder=SUBFOLDER,
        variant=VARIANT,
        device=str(device),
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
    )


def make(pipeline: Any, request: dict[str, Any], images: dict[str, Image.Image]) -> Surface:
    """The mesh in Hunyuan3D's frame: a box of about 2 around the origin."""
    import torch

    settings = request["settings"]
    (mesh,) = pipeline(
        image=images,
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance"],
        octree_resolution=settings["octree_resolution"],
        num_chunks=CHUNK,
        generator=torch.Generator().manual_seed(settings["seed"]),
        output_type="trimesh",
    )
    if mesh is None:  # no surface passes the box
        return Surface(np.empty((0, 3)), np.empty((0, 3), int))
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.faces))


GENERATOR = Generator(
    name="Hunyuan3D-2mv",
    environment="envs/hunyuan3d.yaml",
    modules=("hy3dgen.shapegen",),
    memory=8,
    load=load,
    make=make,
)

if __name__ == "__main__":
    sys.exit(main(GENERATOR))
