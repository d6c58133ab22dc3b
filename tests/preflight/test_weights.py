"""Weight files are opened as the run opens them: cut off, they are a fault before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from face_alignment.detection.sfd.net_s3fd import s3fd
from face_alignment.models import FAN

from eavatar.backends import LANDMARKS, MATTING
from eavatar.capture.backends import rembg
from eavatar.capture.backends.background_matting_v2 import BackgroundMattingSettings
from eavatar.capture.backends.rembg import RembgSettings
from eavatar.errors import UserError
from eavatar.face.backends.face_alignment import FaceAlignmentSettings
from eavatar.preflight.check import Inputs, InputSettings, check
from eavatar.preflight.findings import Examination
from eavatar.preflight.generators import Deployment
from eavatar.preflight.weights import examine_backbones, examine_backends
from eavatar.settings import read_config, required_backbones
from eavatar.weights import backbone, checkpoints_folder
from tests.capture.test_background_matting import Matting
from tests.scenes import CONFIG
from tests.scenes.onnx_network import sigmoid_network
from tests.scenes.small_setup import write_subject

pytest.importorskip("rembg")

FACE_ALIGNMENT = FaceAlignmentSettings(detector="sfd", image_size=256, batch_size=1)
FAN4, S3FD = "3DFAN4-7835d9f11d.pth.tar", "s3fd-619a316812.pth"
KINDS = (FAN4, S3FD, "u2netp.onnx", "torchscript.pth", "alexnet-owt-7be5be79.pth")


def write_shapes(path: Path, module: torch.nn.Module) -> None:
    """A file of a network's names and shapes; one stored zero stands for each tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = module.state_dict()
    kinds = {name: torch.zeros((), dtype=value.dtype) for name, value in state.items()}
    torch.save({name: kinds[name].expand(value.shape) for name, value in state.items()}, path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Whole files of all kinds by name, where the packages look for them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("REMBG_HOME", str(tmp_path / "rembg"))
    monkeypatch.delenv("U2NET_HOME", raising=False)
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")
    rembg._open_session.cache_clear()
    with torch.device("meta"):
        networks = {FAN4: FAN(4), S3FD: s3fd(), KINDS[-1]: torchvision.models.alexnet()}
    paths = {name: checkpoints_folder() / name for name in networks}
    for name, network in networks.items():
        write_shapes(paths[name], network)
    paths["u2netp.onnx"] = tmp_path / "rembg/models/u2netp/u2netp.onnx"
    paths["u2netp.onnx"].parent.mkdir(parents=True)
    paths["u2netp.onnx"].write_bytes(sigmoid_network(320))
    paths["torchscript.pth"] = tmp_path / "torchscript.pth"
    torch.jit.script(Matting()).save(str(paths["torchscript.pth"]))
    yield paths
    rembg._open_session.cache_clear()


def examine(files: dict[str, Path]) -> Examination:
    found = Examination()
    bgm = BackgroundMattingSettings(weights=files["torchscript.pth"])
    choices = [
        (LANDMARKS["face_alignment"], FACE_ALIGNMENT),
        (MATTING["rembg"], RembgSettings(model="u2netp")),
        (MATTING["background_matting_v2"], bgm),
    ]
    examine_backends(found, choices)
    examine_backbones(found, {"alex": False})
    return found


def test_files_that_can_be_opened_are_no_fault(files):
    """Their digests are not the published ones: what a user trained is taken, LPIPS' is not."""
    found = examine(files)
    assert [fault.item for fault in found.faults] == ["weights alexnet-owt-7be5be79.pth"]
    warned = [item.item for item in found.findings if item.status == "warning"]
    assert warned == [f"weights {FAN4}", f"weights {S3FD}"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", ["cut off", "empty", "a web page", "other tensors"])
def test_a_file_that_cannot_be_opened_is_a_fault(files, name, how):
    path = files[name]
    contents = {
        "cut off": path.read_bytes()[: path.stat().st_size // 2],
        "empty": b"",
        "a web page": b"<!DOCTYPE html><html>not found</html>",
    }
    if how == "other tensors":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(contents[how])
    faults = [fault.text for fault in examine(files).faults]
    named = [text for text in faults if str(path) in text or path.name in text]
    assert len(named) == 1, faults
    assert named[0].endswith(".") and "\n" not in named[0]
    assert "again" in named[0] or "https://" in named[0]


def test_each_of_two_broken_files_is_told(files):
    for name in (FAN4, S3FD):
        files[name].write_bytes(files[name].read_bytes()[:1000])
    faults = [fault.text for fault in examine(files).faults]
    assert sum("cannot be opened" in text for text in faults) == 2


def test_anchors_are_opened_too(files, monkeypatch):
    anchors = checkpoints_folder() / "anchors.npy"
    np.save(anchors, np.zeros((8, 4), np.float32))
    torch.save({}, checkpoints_folder() / "blazeface.pth")
    anchors.write_bytes(anchors.read_bytes()[:60])
    found = Examination()
    own = FACE_ALIGNMENT.model_copy(update={"detector": "blazeface"})
    examine_backends(found, [(LANDMARKS["face_alignment"], own)])
    assert [fault.item for fault in found.faults] == ["weights anchors.npy"]


def test_a_pickle_is_not_run(files, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "sprung",)

    torch.save(Trap(), files[FAN4])
    assert any(FAN4 in fault.text for fault in examine(files).faults)
    assert not (tmp_path / "sprung").exists()


def test_check_stops_for_broken_and_for_missing_weights(files, tmp_path):
    """All in one sentence each, before anything long runs."""
    root = write_subject(tmp_path / "subject")
    files[S3FD].write_bytes(files[S3FD].read_bytes()[:1000])
    files["u2netp.onnx"].write_bytes(files["u2netp.onnx"].read_bytes()[:-20])
    overlay = {
        "capture": {"matte": {"backend": "rembg", "rembg": {"model": "u2netp"}}},
        "face": {"landmarks": {"backend": "face_alignment"}},
    }
    (tmp_path / "overlay.yaml").write_text(json.dumps(overlay))
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml", tmp_path / "overlay.yaml")
    settings = InputSettings(
        config.capture.ingest,
        config.capture.matte,
        config.face.landmarks,
        config.prior.generate,
        config.face.fit.head_scale,
    )
    inputs, model = Inputs(root / "capture", None, None, None), root / "model.h5"
    deployment = Deployment(config.prior.run, False)
    with pytest.raises(UserError) as caught:
        check(settings, inputs, model, {"vgg": True}, deployment, [], root / "check.txt")
    message = str(caught.value)
    assert "3 inputs are faulty" in message
    for part in (f"{files[S3FD]} cannot be opened", "u2netp.onnx is not a readable ONNX file"):
        assert part in message
    assert f"{backbone('vgg').path} does not exist" in message
    shutil.rmtree(checkpoints_folder())
    with pytest.raises(UserError, match=f"{FAN4} does not exist"):
        check(settings, inputs, model, {"vgg": False}, deployment, [], root / "check.txt")


def test_backbones_are_those_that_variants_use():
    base = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    strict = base.splat.model_copy(update={"lpips_required": True})
    none = base.splat.model_copy(
        update={"weights": base.splat.weights.model_copy(update={"lpips": 0.0})}
    )
    assert required_backbones([base.splat, strict], [base.tables.evaluate]) == {
        "alex": False,
        "vgg": True,
    }
    assert required_backbones([none], []) == {}
