"""How results were made: what is written beside them, and what does not change it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eavatar import __version__
from eavatar.__main__ import main
from eavatar.errors import UserError
from eavatar.io import write_json
from eavatar.provenance import LARGE, digest, find_records, read_record, recorded
from eavatar.tables.table import METRICS, REGIONAL


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make(output: Path, source: Path) -> None:
    """A result that is a folder, made from another."""
    settings = {"settings": '{"steps": 7}', "seed": 3}
    with recorded("train-splat", "1.2.3", settings, [str(source)], output):
        write(output / "model", b"weights")


def test_a_result_tells_code_inputs_settings_machine_and_time(tmp_path: Path) -> None:
    source = write(tmp_path / "face" / "tracking" / "FREE.npz", b"numbers").parent
    make(tmp_path / "splat" / "full", source)
    (record,) = find_records(tmp_path).values()
    assert (record.verb, record.eavatar) == ("train-splat", "1.2.3")
    assert record.settings == {"settings": {"steps": 7}, "seed": 3}
    assert record.inputs == {str(source): digest(source)}
    assert record.packages["numpy"] and record.hardware and record.host
    assert record.seconds >= 0 and record.started.endswith("+00:00")
    assert record.summary().startswith("EAvatar 1.2.3")


def test_the_result_itself_is_the_same_in_every_run(tmp_path: Path) -> None:
    """And so is the checksum of its folder, which the next stage writes down."""
    for name in ("first", "second"):
        make(tmp_path / name, tmp_path)
        write(tmp_path / name / "log.csv", f"seconds\n{name}".encode())
        write(tmp_path / name / "checkpoints" / "finished.pt", name.encode())
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


@pytest.mark.parametrize(
    ("name", "content", "changes"),
    [
        ("FREE.csv", b"timestep,9", True),
        ("cam/00000.jpg", b"pixelsandmore", True),
        ("cam/00000.jpg", b"PIXELS", False),  # of the same size: too many bytes to read
        ("cam/00001.jpg", b"pixels", True),
        (".snakemake_timestamp", b"now", False),
    ],
)
def test_a_checksum_changes_with_what_counts(
    tmp_path: Path, name: str, content: bytes, changes: bool
) -> None:
    write(tmp_path / "FREE.csv", b"timestep,1")
    write(tmp_path / "cam" / "00000.jpg", b"pixels")
    before = digest(tmp_path)
    write(tmp_path / name, content)
    assert (digest(tmp_path) != before) is changes


def test_originals_beside_a_capture_are_not_read(tmp_path: Path) -> None:
    """They would take hours: of large files the size counts."""
    with write(tmp_path / "cam.mxf", b"original").open("r+b") as file:
        file.truncate(LARGE)
    before = digest(tmp_path)
    with (tmp_path / "cam.mxf").open("r+b") as file:
        file.write(b"ORIGINAL")
    assert digest(tmp_path) == before
    with (tmp_path / "cam.mxf").open("r+b") as file:
        file.truncate(LARGE + 1)
    assert digest(tmp_path) != before


def test_a_link_into_nowhere_does_not_count(tmp_path: Path) -> None:
    """A data set of which only a part was fetched has them."""
    write(tmp_path / "FREE.csv", b"timestep,1")
    before = digest(tmp_path)
    (tmp_path / "EXP-1-head.mp4").symlink_to("/nowhere/1.mp4")
    (tmp_path / "EXP-2-eyes.bin").symlink_to("/nowhere/2.bin")
    assert digest(tmp_path) == before


def test_a_result_that_is_not_made_has_none(tmp_path: Path) -> None:
    with pytest.raises(UserError), recorded("metrics", "1", {}, [], tmp_path / "metrics.csv"):
        raise UserError("no.")
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_recorded_and_the_verb_tells_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = [metric.column for metric in (*METRICS, *REGIONAL)]
    rows = [["protocol", "camera", *columns], ["mean_image", "a", *["20"] * len(columns)]]
    text = "\n".join(map(",".join, rows))
    table = write(tmp_path / "images.csv", text.encode())
    words = ["--subject", "074", "--variant", "floors", "--images", str(table)]
    settings = ["--settings", '{"seeds": [0]}']
    assert main(["metrics", *words, *settings, "--output", str(tmp_path / "metrics.csv")]) == 0
    record = read_record(tmp_path / "metrics.provenance.json")
    assert record.settings["settings"] == {"seeds": [0]}
    assert record.inputs == {str(table): digest(table)}
    assert main(["provenance", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"eavatar: {__version__}" in printed and digest(table) in printed


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no provenance\.json"):
        find_records(tmp_path)
    path = write_json(tmp_path / "provenance.json", {"verb": "metrics"})
    with pytest.raises(UserError, match="lacks some of"):
        read_record(path)
    make(tmp_path / "made", tmp_path)
    content = json.loads((tmp_path / "made" / "provenance.json").read_text()) | {"format": 9}
    with pytest.raises(UserError, match="has format 9"):
        read_record(write_json(path, content))
