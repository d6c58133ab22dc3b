"""`check`: green on a healthy capture, all faults in one line and status 2 on a broken one."""

import shutil
from pathlib import Path

import pytest

from eavatar.__main__ import main
from eavatar.settings import read_config
from tests.scenes import CONFIG
from tests.scenes.capture_faults import (
    FAULTS,
    with_a_damaged_last_frame,
    with_a_truncated_video,
    with_landmarks_of_too_few_frames,
    without_a_model,
    without_a_plate,
    without_a_video,
)
from tests.scenes.small_capture import SERIALS
from tests.scenes.small_setup import write_subject


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject") / "074")


@pytest.fixture
def root(healthy, tmp_path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "074"))


def check(root: Path, **changes: object) -> int:
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    places = {
        "capture": root / "capture",
        "morphable-model": root / "model.h5",
        "landmarks": root / "landmarks",
        "output": root / "check.txt",
    }
    blocks = {
        "settings": config.capture.ingest.model_copy(update=changes),
        "matte-settings": config.capture.matte,
        "landmark-settings": config.face.landmarks,
        "prior-settings": config.prior.generate,
    }
    words = [f"--{name}={block.model_dump_json()}" for name, block in blocks.items()]
    words.append(f"--head-scale={list(config.face.fit.head_scale)}")
    return main(["check", *words, *(f"--{name}={path}" for name, path in places.items())])


def test_a_healthy_capture_is_listed(root):
    assert check(root) == 0
    lines = (root / "check.txt").read_text().splitlines()
    assert any("FREE" in line and "3 cameras × 4 frames" in line for line in lines)
    assert not any("wrong" in line or "missing" in line for line in lines)


def message(printed: str) -> str:
    """The message alone, without the progress bar before it."""
    return printed[printed.index("eavatar check:") :].strip()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_status_2(root, capsys, fault):
    sentence = fault(root)
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert sentence in printed
    assert "\n" not in printed
    assert "inputs are faulty" not in printed  # it alone
    assert not (root / "check.txt").exists()


def test_one_camera_is_told_before_anything_runs(root, capsys):
    assert check(root, cameras=SERIALS[:1]) == 2
    assert f"only camera {SERIALS[0]} is used" in message(capsys.readouterr().err)
    assert check(root, cameras=SERIALS[:2]) == 0
    assert "a third is needed" in (root / "check.txt").read_text().replace("\n", " ")


def test_all_faults_are_told_at_once(root, capsys):
    sentences = [
        without_a_video(root), with_a_truncated_video(root), with_a_damaged_last_frame(root),
        with_landmarks_of_too_few_frames(root), without_a_plate(root), without_a_model(root),
    ]  # fmt: skip
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert f"{len(sentences)} inputs are faulty" in printed
    assert all(sentence in printed for sentence in sentences)
