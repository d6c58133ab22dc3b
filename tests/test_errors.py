"""What a file system refuses is a sentence, whoever writes; and leaves nothing behind."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eavatar import io
from eavatar.__main__ import main
from eavatar.data.video import write_video
from eavatar.errors import UserError, explain_refusal
from tests.scenes.small_capture import grey_frames, ingest_settings, write_capture

FULL = 20_000  # bytes that a file may have; all below are larger
NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
ARRAY = np.zeros((100, 100), np.float32) + NOISE[:100, :100, 0]


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit of file sizes: every writer meets it in the place where it would meet a full disk.

    A context, not a fixture: pytest's own log may be a larger file, written before a teardown.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@dataclass
class Row:
    text: str


def write_tracking(path: Path) -> None:
    random = np.random.default_rng(0).random((400, 68, 3))
    parts = random[:, 0], random[:, 0], random[:, 0], random, random[:, 0]
    io.write_arrays(path, io.Tracking(*(part.astype(np.float32) for part in parts)))


def write_mesh(path: Path) -> None:
    faces = np.arange(3000).reshape(-1, 3)
    io.write_mesh(path, io.Mesh(np.random.default_rng(0).random((3000, 3), np.float32), faces))


def write_torch(path: Path) -> None:
    with io.atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(torch.from_numpy(ARRAY), file)


def write_safetensors(path: Path) -> None:
    with io.atomic(path) as temporary:
        save_file({"array": torch.from_numpy(ARRAY)}, temporary)


def write_numpy(path: Path) -> None:
    with io.atomic(path) as temporary:
        np.save(temporary, ARRAY)


WRITERS: dict[str, Callable[[Path], object]] = {
    "tracking.npz": write_tracking,
    "array.npy": write_numpy,
    "mesh.ply": write_mesh,
    "content.json": lambda path: io.write_json(path, {"text": "a" * 30_000}),
    "rows.csv": lambda path: io.write_rows(path, [Row("a")] * FULL),
    "image.png": lambda path: io.write_image(path, NOISE),
    "image.jpg": lambda path: io.write_image(path, NOISE),
    "video.mp4": lambda path: write_video(path, [NOISE] * 3, 24, "yuv420p", "0", 1),
    "checkpoint.pt": write_torch,
    "model.safetensors": write_safetensors,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_a_sentence_and_keeps_the_old_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("old")
    refusal = rf"{path} cannot be written \(.*\); \w+"
    with pytest.raises(UserError, match=refusal), full_disk():
        WRITERS[name](path)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match=r"content.json cannot be written \(Not a directory\)"):
        io.write_json(tmp_path / "results" / "demo" / "content.json", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"content.json cannot be written \(Permission denied\)"):
        io.write_json(tmp_path / "content.json", {})


def test_a_long_name_has_a_temporary_one(tmp_path: Path) -> None:
    path = io.write_json(tmp_path / f"{'n' * 245}.json", {})
    assert path.exists()


@pytest.mark.parametrize("number", [28, 30, 122])  # disk full, read-only, quota
def test_what_other_languages_say_is_understood(number: int, tmp_path: Path) -> None:
    for text in (f"I/O error (os error {number})", f"write failed: errno = {number}, buf = 0"):
        found = explain_refusal(RuntimeError(text), tmp_path)
        assert str(found).startswith(f"{tmp_path} cannot be written ({os.strerror(number)})")


def test_a_defect_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), io.atomic(tmp_path / "file"):
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), io.atomic(tmp_path / "file"):
        (tmp_path / "missing").read_text()


def test_a_verb_that_cannot_make_its_folder_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = write_capture(tmp_path / "901", grey_frames(2), ("FREE",))
    output = tmp_path / "results"
    output.touch()  # not even root can make a folder in a file
    settings = ingest_settings().model_dump_json()
    words = ["--settings", settings, "--capture", str(capture), "--output", str(output)]
    assert main(["ingest", "--sequence", "FREE", *words]) == 2
    sentence = rf"eavatar ingest: {output}/FREE\S* cannot be \w+ \(Not a directory\); remove the"
    assert re.match(sentence, capsys.readouterr().err.splitlines()[-1])
