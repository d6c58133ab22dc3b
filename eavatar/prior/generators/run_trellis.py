"""TRELLIS in an environment of its own, envs/trellis.yaml: see `process`."""

from __future__ import annotations

import os
import sys
from typing import Any

from PIL import Image
from process import Generator, Surface, main

# Read when TRELLIS is imported: the attention that the environment has, and convolutions without a
# search for the fastest, which pays in repeated runs only. Nothing is downloaded.
os.environ.setdefault("ATTN_BACKEND", "xformers")
os.environ.setdefault("SPCONV_ALGO", "native")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# TRELLIS imports the attention, and kaolin, with the networks alone.
PARTS = ("pipelines", "models.structured_latent_flow", "models.structured_latent_vae")


def load(request: dict[str, Any], device: Any) -> Any:
    """The pipeline of a weight folder, on the device."""
    from trellis.pipelines import TrellisImageTo3DPipeline

    pipeline = TrellisImageTo3DPipeline.from_pretrained(request["weights"])
    pipeline.to(device)
    return pipeline


def make(pipeline: Any, request: dict[str, Any], images: dict[str, Image.Image]) -> Surface:
    """The mesh in TRELLIS' frame: a unit box around the origin, z up."""
    settings = request["settings"]
    options = {
        "seed": settings["seed"],
        "formats": ["mesh"],
        "sparse_structure_sampler_params": sampler(settings["structure"]),
        "slat_sampler_params": sampler(settings["latent"]),
    }
    shown = list(images.values())
    if len(shown) == 1:
        made = pipeline.run(shown[0], **options)
    else:
        made = pipeline.run_multi_image(shown, mode=settings["side_views"], **options)
    (mesh,) = made["mesh"]
    colours = mesh.vertex_attrs
    return Surface(
        mesh.vertices.float().cpu().numpy(),
        mesh.faces.cpu().numpy(),
        None if colours is None else colours[:, :3].float().cpu().numpy(),
    )


def sampler(settings: dict[str, Any]) -> dict[str, Any]:
    """A sampler's settings as TRELLIS names them."""
    return {"steps": settings["steps"], "cfg_strength": settings["guidance"]}


GENERATOR = Generator(
    name="TRELLIS",
    environment="envs/trellis.yaml",
    modules=(*(f"trellis.{name}" for name in PARTS), "spconv.pytorch"),
    memory=16,
    load=load,
    make=make,
)

if __name__ == "__main__":
    sys.exit(main(GENERATOR))
