"""hy3dgen, the code of Hunyuan3D-2mv, behind our program, with tiny random weights as published.

It runs in an environment of its own, which `make test-hunyuan3d` makes, and is skipped without one.
hy3dgen takes a CPU as it takes a GPU, so that nothing stands in for anything.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eavatar.backends import PRIORS
from eavatar.io import read_mesh
from eavatar.preflight.findings import Examination
from eavatar.preflight.weights import examine_backends
from tests.prior.test_generated import chosen

INTERPRETER = "EAVATAR_GENERATOR_PYTHON"
MAKE_WEIGHTS = Path(__file__).parent / "hunyuan3d_on_cpu" / "make_weights.py"
PROGRAM = PRIORS["hunyuan3d"].generator.program

pytestmark = pytest.mark.skipif(
    INTERPRETER not in os.environ, reason=f"{INTERPRETER} is not set; make test-hunyuan3d sets it"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "Hunyuan3D-2mv"
    subprocess.run([os.environ[INTERPRETER], MAKE_WEIGHTS, folder], check=True)
    return folder


def generate(folder: Path, weights: Path, views: tuple[str, ...], seed: int = 1) -> bytes:
    """The mesh's file, from images of a disc."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pixels = np.dstack([x * 99 + 99, y * 99 + 99, 0 * x, np.where(x**2 + y**2 < 0.6, 255, 0)])
    folder.mkdir()
    for name in views:
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    own = {"seed": seed, "steps": 2, "guidance": 5.0, "octree_resolution": 32}
    request = {
        "source": "hunyuan3d",
        "weights": str(weights),
        "settings": own,
        "views": [{"name": name, "image": f"{name}.png"} for name in views],
    }
    (folder / "request.json").write_text(json.dumps(request))
    files = {"request": "request.json", "mesh": "made.ply", "record": "made.json"}
    words = [f"--{name}={folder / file}" for name, file in files.items()]
    command = [os.environ[INTERPRETER], PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "made.ply").read_bytes()


def test_the_weight_folder_is_found_whole(weights: Path) -> None:
    found = Examination()
    settings = chosen("hunyuan3d", weights=str(weights))
    examine_backends(found, [(settings.chosen, settings.own)])
    assert [finding.status for finding in found.findings] == ["ok", "ok"]


@pytest.mark.parametrize("views", [("front",), ("front", "left", "back", "right")])
def test_views_make_a_mesh_in_its_box(
    views: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    generate(tmp_path / "a", weights, views)
    mesh = read_mesh(tmp_path / "a/made.ply")
    assert len(mesh.faces) > 100
    assert np.abs(mesh.vertices).max() <= 1.01 + 1e-6  # hy3dgen's box
    record = json.loads((tmp_path / "a/made.json").read_text())
    assert record["mesh"]["faces"] == len(mesh.faces)


def test_the_seed_decides_the_mesh(weights: Path, tmp_path: Path) -> None:
    first, again, other = (
        generate(tmp_path / str(number), weights, ("front",), seed)
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again != other
