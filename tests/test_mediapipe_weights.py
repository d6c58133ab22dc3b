"""MediaPipe's networks get into a folder whole, or not at all."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from eavatar.__main__ import main
from eavatar.errors import UserError
from eavatar.mediapipe_weights import (
    FACE_LANDMARK,
    PACKAGE,
    SHA256,
    mediapipe_weights,
    open_network,
    unpack_weights,
)
from eavatar.preflight.findings import Examination
from eavatar.preflight.weights import examine_weights
from tests.scenes import ROOT
from tests.scenes.mediapipe_networks import networks_folder


def as_wheel(folder: Path, path: Path) -> Path:
    """A wheel with the files of a folder where MediaPipe's has them."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mediapipe/__init__.py", "")
        for file in folder.iterdir():
            wheel.write(file, f"mediapipe/modules/{file.stem}/{file.name}")
    return path


def test_a_wheel_and_an_installed_package_give_the_same_networks(tmp_path: Path) -> None:
    networks = networks_folder()
    wheel = as_wheel(networks, tmp_path / "mediapipe-0.10.21-py3-none-any.whl")
    assert main(["unpack-weights", str(wheel), "--output", str(tmp_path / "a")]) == 0
    unpack_weights(networks.parent, tmp_path / "b")
    for name in SHA256:
        content = (networks / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == content
        assert (tmp_path / "b" / name).read_bytes() == content


def test_what_holds_no_networks_of_that_version_is_refused(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"

    def refused(match: str, named: Path) -> None:
        with pytest.raises(UserError, match=match) as caught:
            unpack_weights(named, output)
        assert "\n" not in str(caught.value) and not output.exists()

    refused("does not exist", source)
    source.mkdir()
    refused(f"holds no .* of {PACKAGE}", source)
    for name in SHA256:
        (source / name).write_bytes(b"TFL3 of another version")
    refused("holds another file than", source)
    refused("holds another file than", as_wheel(source, tmp_path / "other.whl"))
    (tmp_path / "cut.whl").write_bytes((tmp_path / "other.whl").read_bytes()[:-30])
    refused("is no wheel, or damaged", tmp_path / "cut.whl")


def test_a_missing_or_damaged_network_is_told_with_what_to_do(tmp_path: Path) -> None:
    (weights,) = mediapipe_weights(tmp_path, [FACE_LANDMARK])
    with pytest.raises(UserError, match="does not exist"):
        open_network(weights.path)
    found = Examination()
    examine_weights(found, weights, "set a to b", "missing", "warning")
    weights.path.write_bytes(b"TFL3 cut short")
    with pytest.raises(UserError, match=f"content is not that of {PACKAGE}"):
        open_network(weights.path)
    examine_weights(found, weights, "set a to b", "missing", "warning")
    assert [finding.status for finding in found.findings] == ["missing", "wrong"]
    for finding in found.findings:
        assert PACKAGE in finding.text and "eavatar unpack-weights" in finding.text


def test_the_networks_can_be_opened(tmp_path: Path) -> None:
    for name in SHA256:
        shutil.copy(networks_folder() / name, tmp_path / name)
        assert not open_network(tmp_path / name).empty()


def test_the_makefile_fetches_the_same_version() -> None:
    assert f"--no-deps --dest models {PACKAGE}\n" in (ROOT / "Makefile").read_text()
