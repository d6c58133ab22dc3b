"""What doctor says of licences: of the parts of config/open.yaml, and of the default ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from eavatar.face.ict_facekit import INDICES
from eavatar.preflight.doctor import examine
from eavatar.preflight.findings import Finding
from tests.scenes import CONFIG
from tests.scenes.small_setup import write_model, write_subject


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a subject in it, and no weights anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_subject(tmp_path / "a")
    return tmp_path


def told(place: Path, settings: str) -> dict[str, list[str]]:
    """What is said of each licence, and the answer, for the subject with these settings."""
    return said(found_of(place, settings))


def found_of(place: Path, settings: str) -> list[Finding]:
    (place / "overlay.yaml").write_text(settings)
    sheet = place / "sheet.csv"
    sheet.write_text("subject,capture,settings\na,a/capture,overlay.yaml\n")
    return examine(str(CONFIG / "config.yaml"), sheet, ()).findings


def said(findings: Sequence[Finding]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for finding in findings:
        if finding.item.startswith("licence ") or finding.item == "commercial use":
            lines.setdefault(finding.item.removeprefix("licence "), []).append(finding.text)
    return lines


def test_all_parts_of_the_open_chain_may_be_used_commercially(place: Path) -> None:
    folder = place / "models" / "FaceXModel"
    folder.mkdir(parents=True)
    (folder / "generic_neutral_mesh.obj").write_text("mtllib a.mtl\nv 0 0 0\n")
    (folder / INDICES).write_text("{}")
    lines = told(place, (CONFIG / "open.yaml").read_text())
    assert lines["commercial use"][0].startswith("yes")
    assert "MIT" in lines["morphable model"][0]
    for part in ("masks selfie", "landmarks mediapipe", "prior template"):
        assert "Apache-2.0" in lines[part][0]
    assert not any(part.startswith("LPIPS") for part in lines)


def test_the_default_parts_may_not_and_each_reason_is_told(place: Path) -> None:
    model = place / "model2017.h5"
    write_model(model)
    (answer,) = told(place, f"morphable_model: {model}")["commercial use"]
    assert answer.startswith("no: ")
    for reason in (
        "morphable model (its licence allows none)",
        "landmarks face_alignment (trained on 300W-LP",
        "prior trellis (the terms of FlexiCubes",
        "LPIPS vgg (trained on ImageNet",
    ):
        assert reason in answer
    assert "masks" not in answer  # by plates, without a network


def test_a_model_that_is_not_there_leaves_the_question_open(place: Path) -> None:
    found = found_of(place, (CONFIG / "open.yaml").read_text())
    answer = said(found)["commercial use"][0]
    assert answer.startswith("not known: morphable model (its licence is not known)")
    status = {finding.item: finding.status for finding in found}
    assert status["licence morphable model"] == status["commercial use"] == "warning"
    assert status["licence masks selfie"] == "ok"


def test_a_loss_whose_weights_are_neither_there_nor_needed_is_no_part(place: Path) -> None:
    parts = told(place, (CONFIG / "demo.yaml").read_text())
    assert "LPIPS vgg" not in parts
    backbone = place / "torch/hub/checkpoints/vgg16-397923af.pth"
    backbone.parent.mkdir(parents=True)
    backbone.touch()
    assert "LPIPS vgg" in told(place, (CONFIG / "demo.yaml").read_text())


def test_a_network_for_research_alone_is_told(place: Path) -> None:
    pytest.importorskip("rembg")
    matte = "capture: {matte: {backend: rembg, rembg: {model: bria-rmbg}}}"
    assert "its licence allows none" in told(place, matte)["masks rembg"][0]
