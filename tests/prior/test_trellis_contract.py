"""TRELLIS' own code behind our program, with tiny random weights in the published format.

It runs in an environment of its own, which `make test-trellis` makes, and is skipped without one:
it takes minutes. Our program calls the same functions as with the published weights on a GPU; what
a CPU needs different is in ``trellis_on_cpu``. The test marked ``gpu`` needs `spconv-triton`, or
spconv for CUDA, in that environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from eavatar.backends import PRIORS
from eavatar.errors import UserError
from eavatar.io import read_mesh
from eavatar.preflight.findings import Examination
from eavatar.preflight.generators import Deployment, examine_generators
from eavatar.prior.align import align_prior
from eavatar.prior.generate import generate_prior
from eavatar.settings import AlignSettings, GenerateSettings, PriorRunSettings
from tests.scenes import ROOT
from tests.scenes.heads import random_head, write_subject
from tests.scenes.workflow import run as call_snakemake

INTERPRETER = "EAVATAR_GENERATOR_PYTHON"
ON_CPU = Path(__file__).parent / "trellis_on_cpu"
PROGRAM = PRIORS["trellis"].generator.program
SAMPLER = {"steps": 2, "guidance": 5.0}
REFUSED = "does not match the fitted face and the masks in any orientation"

pytestmark = pytest.mark.skipif(
    INTERPRETER not in os.environ, reason=f"{INTERPRETER} is not set; make test-trellis sets it"
)


def write_interpreter(path: Path, on_gpu: bool) -> Path:
    """The environment's interpreter, which finds what TRELLIS lacks in ``trellis_on_cpu``."""
    settings = "CUDA_VISIBLE_DEVICES= ATTN_BACKEND=sdpa SPARSE_ATTN_BACKEND=xformers"
    if on_gpu:
        settings = "EAVATAR_TRELLIS_ON_GPU=1"
    words = f'exec env PYTHONPATH={ON_CPU} {settings} {os.environ[INTERPRETER]} "$@"'
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interpreter(tmp_path_factory.mktemp("bin") / "python", on_gpu=False)


def make_weights(python: Path, folder: Path, size: str) -> Path:
    """The weight folder; DINOv2 is in ``torch`` beside it."""
    program, weights = ON_CPU / "make_weights.py", folder / "TRELLIS"
    command = [python, program, weights, folder / "torch", size]
    subprocess.run(command, check=True, env={**os.environ, "ATTN_BACKEND": "xformers"})
    return weights


@pytest.fixture(scope="module")
def weights(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(python, tmp_path_factory.mktemp("weights"), "tiny")


def write_request(folder: Path, weights: Path, views: int, **settings: Any) -> Path:
    """A request to show some views of a coloured ball."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    (folder / "images").mkdir(parents=True)
    names = ("front", "left", "right")[:views]
    for number, name in enumerate(names):
        colour = np.dstack([x * 127 + 127, y * 127 + 127, np.full_like(x, 80 * number)])
        alpha = np.where(x**2 + y**2 < 0.6, 255, 0)
        pixels = np.dstack([colour, alpha]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{name}.png")
    own = {"seed": 1, "side_views": "none", "structure": SAMPLER, "latent": SAMPLER, **settings}
    request = {
        "source": "trellis",
        "weights": str(weights),
        "settings": own,
        "views": [{"name": name, "image": f"images/{name}.png"} for name in names],
    }
    (folder / "request.json").write_text(json.dumps(request))
    return folder


def generate(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    files = {"request": "request.json", "mesh": "made.ply", "record": "made.json"}
    words = [f"--{name}={folder / file}" for name, file in files.items()]
    return subprocess.run([python, PROGRAM, *words], capture_output=True, text=True)


def check_made(folder: Path) -> dict[str, Any]:
    """The record of a mesh that fills TRELLIS' box."""
    record: dict[str, Any] = json.loads((folder / "made.json").read_text())
    mesh = read_mesh(folder / "made.ply")
    assert (len(mesh.vertices), len(mesh.faces)) == (
        record["mesh"]["vertices"],
        record["mesh"]["faces"],
    )
    assert len(mesh.faces) > 1000 and np.isfinite(mesh.vertices).all()
    assert mesh.colours is not None
    # FlexiCubes moves a corner by less than a cell, of which the box has 64
    assert np.abs(mesh.vertices).max() < 0.5 + 1 / 64
    return record


def test_the_environment_is_found_good(python: Path) -> None:
    found = Examination()
    deployment = Deployment(PriorRunSettings(python=python), False)
    examine_generators(found, [(PRIORS["trellis"], deployment)])
    (finding,) = found.findings
    assert finding.status in ("ok", "warning")  # a warning without a GPU
    assert "torch" in finding.text and "spconv" in finding.text


def test_one_image_makes_a_mesh_and_the_same_seed_the_same(
    python: Path, weights: Path, tmp_path: Path
) -> None:
    meshes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = write_request(tmp_path / name, weights, views=1, seed=seed)
        done = generate(python, folder)
        assert done.returncode == 0, done.stderr
        check_made(folder)
        meshes.append((folder / "made.ply").read_bytes())
    assert meshes[0] == meshes[1] != meshes[2]


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_images_make_a_mesh(mode: str, python: Path, weights: Path, tmp_path: Path) -> None:
    folder = write_request(tmp_path / "a", weights, views=3, side_views=mode)
    done = generate(python, folder)
    assert done.returncode == 0, done.stderr
    check_made(folder)


def test_missing_weights_are_one_sentence(python: Path, weights: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copytree(weights, tmp_path / "weights"))
    (partial / "ckpts/slat_flow_model.safetensors").unlink()
    done = generate(python, write_request(tmp_path / "a", partial, views=1))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"eavatar run-generator: the weights in {partial} cannot be loaded")


def test_snakemake_makes_the_mesh_of_the_embedded_subject_and_refuses_it(
    python: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    steps = {"steps": SAMPLER["steps"]}
    own = {"weights": str(weights), "structure": steps, "latent": steps}
    tiny["prior"] = {
        "generate": {"source": "trellis", "trellis": own},
        "run": {"python": str(python)},
    }
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny))
    (tmp_path / "subjects.csv").write_text("subject,capture,settings\ndemo,generated,tiny.yaml\n")
    monkeypatch.setenv("TORCH_HOME", str(weights.parent / "torch"))
    status, printed = call_snakemake(tmp_path, "results/demo/prior/raw.ply")
    assert status == 0, printed
    folder = tmp_path / "results/demo/prior"
    record = json.loads((folder / "generation.json").read_text())
    assert record["asked"]["views"][0]["name"] == "front"
    assert len(read_mesh(folder / "raw.ply").faces) == record["mesh"]["faces"]
    status, printed = call_snakemake(tmp_path, "results/demo/prior/aligned.ply")
    assert status != 0
    assert REFUSED in printed, printed


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "steps"), [("tiny", 2), ("published", 25)])
def test_on_a_gpu_a_mesh_is_made_and_refused(size: str, steps: int, tmp_path: Path) -> None:
    """As published: extraction and convolutions on the GPU, the attention that our program chooses.

    Tiny networks compute in single precision, those of the published size in half. The tiny ones
    have run on an H200, beside PyTorch 2.11, where xformers 0.0.35 has no operators; the published
    size has not.
    """
    python = write_interpreter(tmp_path / "python", on_gpu=True)
    weights = make_weights(python, tmp_path, size)
    sampler = {**SAMPLER, "steps": steps}
    folder = write_request(tmp_path / "a", weights, views=1, structure=sampler, latent=sampler)
    done = generate(python, folder)
    assert done.returncode == 0, done.stderr
    assert check_made(folder)["run"]["peak_gpu_memory_gib"] > 0
    (capture, face), raw = write_subject(tmp_path, random_head(4), 0.45), tmp_path / "raw.ply"
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())["prior"]
    files = face / "identity.npz", face / "neutral.ply"
    generate_prior(GenerateSettings(**settings["generate"]), *files, folder / "made.ply", raw)
    with pytest.raises(UserError, match=REFUSED):
        align_prior(AlignSettings(**settings["align"]), 0, raw, capture, face, tmp_path / "prior")
