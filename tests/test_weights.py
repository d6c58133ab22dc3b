"""Where torch's users look for weights, found without torch; files of tensors are never run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eavatar.weights import BACKBONES, backbone, checkpoints_folder, open_tensors


def test_the_folder_is_that_of_torch(tmp_path, monkeypatch):
    for name, value in (("TORCH_HOME", str(tmp_path)), ("XDG_CACHE_HOME", "/somewhere")):
        monkeypatch.setenv(name, value)
        assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"
    assert [backbone(net).path.name for net in BACKBONES] == list(BACKBONES.values())


def test_no_torch_is_imported_to_name_a_backbone():
    code = "import sys; from eavatar.weights import backbone; backbone('vgg')"
    command = [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, check=False).returncode == 0


def test_tensors_and_arrays_are_opened_and_objects_are_not(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pth")
    assert torch.equal(open_tensors(tmp_path / "net.pth")["weight"], torch.ones(2))
    np.save(tmp_path / "anchors.npy", np.ones(3))
    assert open_tensors(tmp_path / "anchors.npy").sum() == 3
    torch.save(Path("an object"), tmp_path / "net.pth")
    np.save(tmp_path / "anchors.npy", np.array([{}], dtype=object))
    for name in ("net.pth", "anchors.npy"):
        with pytest.raises(Exception, match=r"pickle|weights_only|Weights only"):
            open_tensors(tmp_path / name)
