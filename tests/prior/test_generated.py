"""Generators as backends: weights that are missing or damaged, and the mesh that is taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import yaml

from eavatar.backends import PRIORS
from eavatar.errors import UserError
from eavatar.io import read_mesh
from eavatar.preflight.findings import Examination
from eavatar.preflight.weights import examine_backends
from eavatar.prior.generate import generate_prior
from eavatar.prior.generated import find_weights
from eavatar.settings import Config, merge, validate
from tests.scenes import CONFIG

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())
GENERATORS = [name for name, backend in PRIORS.items() if backend.generator]
MODELS = {"slat_flow_model": "ckpts/flow", "slat_decoder_mesh": "ckpts/mesh"}


def chosen(name: str, **own: Any) -> Any:
    changed = {"prior": {"generate": {"source": name, name: own}}}
    return validate(Config, merge(BASE, changed), "test").prior.generate


def findings(settings: Any) -> dict[str, str]:
    found = Examination()
    examine_backends(found, [(settings.chosen, settings.own)])
    return {f"{f.item.partition(' ')[2]}: {f.status}": f.text for f in found.findings}


def write_safetensors(path: Path) -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    header = {"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def trellis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight folder in the published format, and DINOv2 in torch's folder."""
    folder, hub = tmp_path / "TRELLIS", tmp_path / "torch/hub"
    (folder / "ckpts").mkdir(parents=True)
    arguments = {"models": MODELS, "image_cond_model": "dinov2_vitl14_reg"}
    (folder / "pipeline.json").write_text(json.dumps({"args": arguments}))
    for place in MODELS.values():
        (folder / f"{place}.json").write_text("{}")
        write_safetensors(folder / f"{place}.safetensors")
    (hub / "facebookresearch_dinov2_main").mkdir(parents=True)
    (hub / "facebookresearch_dinov2_main/hubconf.py").touch()
    (hub / "checkpoints").mkdir()
    torch.save({}, hub / "checkpoints/dinov2_vitl14_reg4_pretrain.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


def test_a_whole_weight_folder_is_listed_file_by_file(trellis: Path) -> None:
    assert list(findings(chosen("trellis", weights=str(trellis)))) == [
        "pipeline.json: ok",
        "flow.json: ok",
        "flow.safetensors: ok",
        "mesh.json: ok",
        "mesh.safetensors: ok",
        "hubconf.py: ok",
        "dinov2_vitl14_reg4_pretrain.pth: ok",
    ]


def test_missing_weights_say_from_where_to_where_and_what_avoids_them(trellis: Path) -> None:
    (trellis / "ckpts/mesh.safetensors").unlink()
    (trellis.parent / "torch/hub/facebookresearch_dinov2_main/hubconf.py").unlink()
    (trellis.parent / "torch/hub/checkpoints/dinov2_vitl14_reg4_pretrain.pth").unlink()
    told = findings(chosen("trellis", weights=str(trellis)))
    missing = told["mesh.safetensors: missing"]
    assert f"{trellis}/ckpts/mesh.safetensors does not exist" in missing
    assert "download https://huggingface.co/microsoft/TRELLIS-image-large" in missing
    assert missing.endswith("or set prior.generate.source to template.")
    assert "git clone it as" in told["hubconf.py: missing"]
    image_model = told["dinov2_vitl14_reg4_pretrain.pth: missing"]
    assert "dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth" in image_model


def test_a_file_that_is_cut_off_is_told(trellis: Path) -> None:
    path = trellis / "ckpts/flow.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    told = findings(chosen("trellis", weights=str(trellis)))
    assert "it is cut off" in told["flow.safetensors: wrong"]


@pytest.mark.parametrize("content", ["{", "[]", '{"args": {}}'])
def test_an_index_that_is_none_is_told(content: str, trellis: Path) -> None:
    (trellis / "pipeline.json").write_text(content)
    told = findings(chosen("trellis", weights=str(trellis)))
    assert list(told) == ["pipeline.json: wrong"]


def test_a_missing_folder_is_one_finding(tmp_path: Path) -> None:
    told = findings(chosen("trellis", weights=str(tmp_path / "none")))
    assert list(told) == ["pipeline.json: missing"]
    assert "the whole folder, about 3 GB" in told["pipeline.json: missing"]


def test_the_weights_of_hunyuan3d_come_with_their_licence(tmp_path: Path) -> None:
    told = findings(chosen("hunyuan3d", weights=str(tmp_path)))
    assert list(told) == ["config.yaml: missing", "model.fp16.safetensors: missing"]
    assert all("not for the EU, the UK and South Korea" in text for text in told.values())


@pytest.mark.parametrize("views", [["front", "left", "front"], ["left", "front"]])
def test_views_of_hunyuan3d_stand_once_and_front_first(views: list[str]) -> None:
    """Of two of a name the second would take the place of the first."""
    with pytest.raises(UserError, match="each view must stand once, and front first"):
        chosen("hunyuan3d", views=views)


def test_a_name_is_found_in_hugging_faces_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    name = Path("microsoft/TRELLIS-image-large")
    assert find_weights(name) == name
    model = tmp_path / "hf/hub/models--microsoft--TRELLIS-image-large"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc\n")
    assert find_weights(name) == model / "snapshots/abc"
    name.mkdir(parents=True)
    assert find_weights(name) == name  # a folder of that path comes first


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_mesh_is_taken_over(name: str, tmp_path: Path) -> None:
    trimesh.creation.box([1, 2, 3]).export(tmp_path / "generated.ply")
    places = (tmp_path / "identity.npz", tmp_path / "neutral.ply")  # which it does not need
    generate_prior(chosen(name), *places, tmp_path / "generated.ply", tmp_path / "raw.ply")
    assert len(read_mesh(tmp_path / "raw.ply").faces) == 12
    with pytest.raises(UserError, match=f"run_{name}.py from what prepare-prior wrote"):
        generate_prior(chosen(name), *places, None, tmp_path / "raw.ply")
