"""Which check covers what: parts of a subject by settings and by files' sizes and times."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eavatar.preflight.editions import describe_covered, find_editions, list_parts
from eavatar.preflight.subjects import Subject, choose_sequences
from eavatar.settings import Config, merge, read_yaml, validate
from tests.scenes import CONFIG
from tests.scenes.small_setup import SEQUENCES, write_model

CONTENT = merge(read_yaml(CONFIG / "config.yaml"), read_yaml(CONFIG / "demo.yaml"))
BASE = validate(Config, CONTENT, "test")
PER_SEQUENCE = ("ingest", "matte", "detect_landmarks")
ALL = {"choose_sequences", "calibrate", "fit_face", "generate_prior"} | {
    f"{rule} {name}" for rule in PER_SEQUENCE for name in SEQUENCES
}


def of(rule: str) -> set[str]:
    """The parts of a rule, of all sequences."""
    return {part for part in ALL if part.startswith(rule)}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A NeRSemble v2 capture and all that may come with it; only names and sizes matter."""
    for sequence in SEQUENCES:
        for name in ("images/cam_1.mp4", "images/cam_2.mp4"):
            write(tmp_path / "capture/sequences" / sequence / name)
        write(tmp_path / "mattes" / sequence / "cam_1.mp4")
        write(tmp_path / "landmarks" / f"{sequence}.npz")
    write(tmp_path / "capture/calibration/camera_params.json")
    write(tmp_path / "capture/sequences/BACKGROUND/image_1.jpg")
    write(tmp_path / "head.ply")
    model = write_model(tmp_path / "model.h5")
    given = [tmp_path / name for name in ("capture", "landmarks", "mattes", "head.ply")]
    return Subject("074", given[0], model, *given[1:])


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1234")


def parts(subject: Subject, config: Config = BASE) -> dict[str, str]:
    return list_parts(subject, config, choose_sequences(subject, config))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def make_older(path: Path) -> None:
    """The same size and an older time, as of another recording that was copied with its times."""
    os.utime(path, (1_000_000_000, 1_000_000_000))


def make_longer(path: Path) -> None:
    """Another size at the same time."""
    state = path.stat()
    path.write_bytes(b"12345")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [make_older, make_longer, Path.unlink])
@pytest.mark.parametrize(
    ("name", "concerned"),
    [
        ("capture/sequences/FREE/images/cam_2.mp4", {"ingest FREE"}),
        ("capture/calibration/camera_params.json", of("ingest") | {"calibrate"}),
        ("capture/sequences/BACKGROUND/image_1.jpg", of("ingest") | {"calibrate"}),
        ("mattes/FREE/cam_1.mp4", {"matte FREE"}),
        ("landmarks/FREE.npz", {"detect_landmarks FREE"}),
        ("model.h5", {"fit_face"}),
        ("head.ply", {"generate_prior"}),
    ],
)
def test_a_file_replaced_in_place_concerns_the_rules_that_read_it(
    subject: Subject, name: str, concerned: set[str], change: Callable[[Path], None]
) -> None:
    assert subject.capture
    before = parts(subject)
    change(subject.capture.parent / name)
    assert changed(before, parts(subject)) == concerned


def test_what_nobody_reads_concerns_no_rule(subject: Subject) -> None:
    root = subject.capture
    assert root
    before = parts(subject)
    assert set(before) == ALL
    write(root / "sequences/FREE/images/.DS_Store")
    write(root / "sequences/FREE/images/Thumbs.db")
    write(root / "notes.txt")
    for path in root.rglob("cam_1.mp4"):  # read again, as by a check
        path.read_bytes()
    assert parts(subject) == before


def test_a_capture_that_moves_with_its_times_is_the_same(subject: Subject, tmp_path: Path) -> None:
    assert subject.capture
    before = parts(subject)
    shutil.copytree(subject.capture, tmp_path / "other disk")
    moved = replace(subject, capture=tmp_path / "other disk")
    assert parts(moved) == before


def test_landmark_indices_beside_the_model_concern_the_fit(subject: Subject) -> None:
    before = parts(subject)
    assert subject.morphable_model
    write(subject.morphable_model.with_suffix(".txt"))
    assert changed(before, parts(subject)) == {"fit_face"}


@pytest.mark.parametrize(
    ("overlay", "concerned"),
    [
        ({"capture": {"ingest": {"every": 2}}}, of("ingest")),
        ({"capture": {"ingest": {"image_size": 4096}}}, of("ingest") | {"calibrate"}),
        ({"capture": {"ingest": {"cameras": ["1"]}}}, of("ingest") | {"calibrate"}),
        ({"capture": {"ingest": {"held_out": ["EXP-1*"]}}}, {"choose_sequences"}),
        ({"capture": {"matte": {"max_jump": 0.4}}}, of("matte")),
        ({"face": {"landmarks": {"backend": "face_alignment"}}}, of("detect_landmarks")),
        ({"face": {"fit": {"head_scale": [0.05, 0.2]}}}, {"fit_face"}),
        ({"prior": {"generate": {"source": "provided"}}}, {"generate_prior"}),
        ({"face": {"refine": {"rounds": 9}}}, set()),  # the check does not look at it
    ],
)
def test_a_setting_concerns_the_rules_that_use_it(
    subject: Subject, overlay: dict, concerned: set[str]
) -> None:
    after = validate(Config, merge(CONTENT, overlay), "test")
    assert changed(parts(subject), parts(subject, after)) == concerned


def test_a_sequence_left_out_concerns_no_other(subject: Subject) -> None:
    fewer = {"capture": {"ingest": {"sequences": ["EXP-1*", "FREE"]}}}
    after = validate(Config, merge(CONTENT, fewer), "test")
    gone = {f"{rule} EXP-2-eyes" for rule in PER_SEQUENCE}
    found = changed(parts(subject), parts(subject, after))
    assert found == gone | {"choose_sequences"}


def test_the_first_edition_that_covers_a_part_counts(tmp_path: Path) -> None:
    assert find_editions(tmp_path / "none", ["a"]) == {"a": 1}
    (tmp_path / "2.txt").write_text(f"found\n\n{describe_covered(['a', 'b'])}\n")
    (tmp_path / "10.txt").write_text(f"found\n\n{describe_covered(['b', 'c'])}\n")
    assert find_editions(tmp_path, "abcd") == {"a": 2, "b": 2, "c": 10, "d": 11}
    (tmp_path / "2.txt").write_bytes(b"\xff damaged")
    (tmp_path / "10.txt").write_text("")
    assert find_editions(tmp_path, "ab") == {"a": 11, "b": 11}


def test_every_layout_of_a_capture_has_its_files_listed(tmp_path: Path) -> None:
    """A change of a sequence's images and of the calibration is seen in each of them."""
    v1 = tmp_path / "v1/camera_params/030"
    gha = tmp_path / "gha"
    cases = {
        v1: (
            [v1 / "camera_params.json", tmp_path / "v1/color_correction/030/1.npy"],
            tmp_path / "v1/sequence_FREE_part-1/030/FREE/cam_1.mp4",
        ),
        gha: (
            [gha / "cameras/0000/camera_1.npz", gha / "background/image_1.jpg"],
            gha / "images/0000/image_1.jpg",
        ),
    }
    for root, (shared, image) in cases.items():
        for path in (*shared, image):
            write(path)
        subject = Subject("030", root, mattes=root)
        for path in shared:
            before = parts(subject)
            make_older(path)
            assert "calibrate" in changed(before, parts(subject))
        before = parts(subject)
        make_older(image)
        assert any(name.startswith("ingest") for name in changed(before, parts(subject)))
