from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.io import (
    SHAPES,
    Alignment,
    ExpressionBasis,
    Identity,
    Landmarks,
    Mesh,
    Record,
    Sequences,
    Tracking,
    atomic,
    read_alignment,
    read_arrays,
    read_cameras,
    read_json,
    read_mesh,
    read_sequences,
    read_table,
    require,
    write_alignment,
    write_arrays,
    write_cameras,
    write_json,
    write_mesh,
    write_sequences,
)
from eavatar.transforms import Similarity

TIMESTEPS, CAMERAS = 3, 2


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


LANDMARKS = Landmarks(
    cameras=np.array(["222200037", "222200042"]),
    points=values(TIMESTEPS, CAMERAS, 68, 2),
    confidence=values(TIMESTEPS, CAMERAS, 68),
)
IDENTITY = Identity(identity=values(80), scale=np.array(0.1, np.float32), landmarks=values(68, 3))
TRACKING = Tracking(
    expression=values(TIMESTEPS, 53),
    rotation=values(TIMESTEPS, 3),
    translation=values(TIMESTEPS, 3),
    landmarks=values(TIMESTEPS, 68, 3),
    reprojection_error=values(TIMESTEPS, CAMERAS),
)
RECORDS = [LANDMARKS, IDENTITY, TRACKING]
NAMES = [type(record).__name__ for record in RECORDS]


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_arrays_come_back(record: Record, tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "new" / "file.npz", record)
    read = read_arrays(type(record), path)
    for field in fields(record):
        array = getattr(read, field.name)
        np.testing.assert_array_equal(array, getattr(record, field.name))
        assert array.dtype == np.float32 or array.dtype.kind == "U"


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_a_lacking_array_is_named(record: Record, tmp_path: Path) -> None:
    path, first = tmp_path / "file.npz", fields(record)[0].name
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    arrays.pop(first)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"lacks the array '{first}'"):
        read_arrays(type(record), path)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("results/074/face/identity.npz", "`snakemake --cores all results/074/metrics.csv` makes"),
        ("/home/me/results/074/splat/full/log.csv", "results/074/metrics.csv` makes"),
        ("results/failed.csv", "check the path"),
        ("heads/mine.ply", "check the path"),
    ],
)
def test_a_missing_file_is_told_with_what_to_do(path: str, advice: str) -> None:
    with pytest.raises(UserError, match="the thing is missing") as raised:
        require(Path(path), "the thing")
    assert path in str(raised.value)
    assert advice in str(raised.value)


def test_a_wrong_shape_is_refused_on_reading_and_writing(tmp_path: Path) -> None:
    wrong = replace(LANDMARKS, points=values(TIMESTEPS, CAMERAS, 66, 2))
    with pytest.raises(UserError, match=r"'points' has shape \(3, 2, 66, 2\)"):
        write_arrays(tmp_path / "a.npz", wrong)
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "b.npz", **{f.name: getattr(wrong, f.name) for f in fields(wrong)})
    with pytest.raises(UserError, match=r"b\.npz: array 'points'"):
        read_arrays(Landmarks, tmp_path / "b.npz")


def test_arrays_of_one_file_agree_on_their_lengths(tmp_path: Path) -> None:
    wrong = replace(TRACKING, rotation=values(TIMESTEPS + 1, 3))
    with pytest.raises(UserError, match=r"'rotation' has shape \(4, 3\), expected \(3, 3\)"):
        write_arrays(tmp_path / "a.npz", wrong)


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="identity file is missing"):
        read_arrays(Identity, tmp_path / "none.npz")
    with pytest.raises(UserError, match="expression basis file is missing"):
        read_arrays(ExpressionBasis, tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text\.npz is not a readable"):
        read_arrays(Identity, tmp_path / "text.npz")
    np.savez(tmp_path / "pickle.npz", identity=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"pickle\.npz is not a readable"):
        read_arrays(Identity, tmp_path / "pickle.npz")
    whole = write_arrays(tmp_path / "whole.npz", IDENTITY).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.npz is not a readable"):
        read_arrays(Identity, tmp_path / "half.npz")


def test_cameras_come_back_sorted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cameras = {
        serial: Camera(rng.normal(size=(3, 3)), rng.normal(size=(4, 4)), 256, 128)
        for serial in ("222200042", "222200037")
    }
    read = read_cameras(write_cameras(tmp_path / "cameras.json", cameras))
    assert list(read) == ["222200037", "222200042"]
    for serial, camera in cameras.items():
        np.testing.assert_array_equal(read[serial].intrinsics, camera.intrinsics)
        np.testing.assert_array_equal(read[serial].world_to_camera, camera.world_to_camera)
        assert (read[serial].width, read[serial].height) == (256, 128)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"intrinsics": [[1, 0], [0, 1]]}, "needs 3×3"),
        ({"world_to_camera": [[1, "x"]]}, "is malformed"),
        ({"width": None}, "is malformed"),
    ],
)
def test_malformed_cameras_are_named(change: dict, message: str, tmp_path: Path) -> None:
    path = write_cameras(tmp_path / "cameras.json", {"7": Camera(np.eye(3), np.eye(4), 8, 8)})
    content = json.loads(path.read_text())
    content["7"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"camera 7 {message}"):
        read_cameras(path)


def test_a_camera_without_a_key_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "cameras.json", {"7": {"intrinsics": np.eye(3).tolist()}})
    with pytest.raises(UserError, match=r"camera 7 is malformed.*world_to_camera"):
        read_cameras(path)


def test_json_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    path.write_text('{"é": 1}', encoding="utf-8-sig")
    assert read_json(path, "the file") == {"é": 1}


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    with pytest.raises(UserError, match="the camera file is missing"):
        read_cameras(path)
    path.write_text('{"7": ')
    with pytest.raises(UserError, match=r"cameras\.json is not valid JSON"):
        read_cameras(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path, "the file")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No columns"),
        (b"timestep;camera\r\n0;1\r\n", "has no column 'camera'"),
        (b"camera\n1\n2,3\n", "saw 2"),
        (b"\xff\xfe", "codec"),
    ],
)
def test_a_damaged_table_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "FREE.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"the index is damaged: {path} .*{reason}") as refused:
        read_table(path, "the index", ["camera"])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_may_have_the_line_endings_of_another_system(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "FREE.csv").write_bytes(mark + b"timestep,camera\r\n0,007\r\n")
    table = read_table(tmp_path / "FREE.csv", "the index", ["camera"])
    assert table.to_numpy().tolist() == [[0, "007"]]


def test_an_alignment_comes_back(tmp_path: Path) -> None:
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    transform = Similarity(1.25, turn, np.array([0.1, -2, 3]))
    alignment = Alignment(transform, 0.021, 0.93, accepted=False)
    read = read_alignment(write_alignment(tmp_path / "alignment.json", alignment))
    np.testing.assert_array_equal(read.transform.matrix, alignment.transform.matrix)
    assert (read.residual, read.confidence, read.accepted) == (0.021, 0.93, False)


def test_an_alignment_without_a_key_is_refused(tmp_path: Path) -> None:
    content = {"format": 2, "scale": 1.0, "rotation": []}
    path = write_json(tmp_path / "alignment.json", content)
    with pytest.raises(UserError, match="is not an alignment file"):
        read_alignment(path)


def test_the_list_of_sequences_comes_back_sorted(tmp_path: Path) -> None:
    path = write_sequences(tmp_path / "sequences.json", Sequences(("b", "a"), ("ab",)))
    read = read_sequences(path)
    assert read == Sequences(("a", "b"), ("ab",))
    assert read.names == ("a", "ab", "b")
    faulty: list[dict] = [{"train": ["a"]}, {"train": [1], "test": []}, {"train": None, "test": []}]
    for content in faulty:
        with pytest.raises(UserError, match="is no list of sequences"):
            read_sequences(write_json(path, content))
    with pytest.raises(UserError, match="the list of sequences is missing"):
        read_sequences(tmp_path / "none.json")


def test_a_file_without_a_format_is_of_format_1_and_an_unknown_one_is_named(
    tmp_path: Path,
) -> None:
    path = write_cameras(tmp_path / "cameras.json", {"7": Camera(np.eye(3), np.eye(4), 8, 8)})
    content = json.loads(path.read_text())
    assert content.pop("format") == 1
    read_cameras(path)
    write_json(path, content)
    read_cameras(path)
    write_json(path, {"format": 2, **content})
    with pytest.raises(UserError, match=r"cameras\.json has format 2, but .* reads format 1"):
        read_cameras(path)


def test_an_alignment_of_the_first_format_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "alignment.json", {"scale": 1.0, "fitness": 0.9})
    with pytest.raises(UserError, match=r"alignment\.json has format 1, but .* reads format 2"):
        read_alignment(path)


def test_a_tracking_is_a_sequence_of_timesteps() -> None:
    assert len(TRACKING) == TIMESTEPS
    last = TRACKING[-1]
    np.testing.assert_array_equal(last.expression, TRACKING.expression[2])
    np.testing.assert_array_equal(last.rotation, TRACKING.rotation[2])
    np.testing.assert_array_equal(last.translation, TRACKING.translation[2])
    with pytest.raises(IndexError):
        TRACKING[TIMESTEPS]
    part = TRACKING[1:]
    for field in fields(TRACKING):
        array = getattr(part, field.name)
        np.testing.assert_array_equal(array, getattr(TRACKING, field.name)[1:])
    assert [step.expression[0] for step in TRACKING] == list(TRACKING.expression[:, 0])


def test_an_expression_is_edited_without_the_pose() -> None:
    calm = TRACKING[1].with_expression([0] * 53)
    assert calm.expression.dtype == np.float32 and not calm.expression.any()
    np.testing.assert_array_equal(calm.rotation, TRACKING.rotation[1])
    assert TRACKING.expression[1].any()


@pytest.mark.parametrize("coloured", [False, True])
def test_a_mesh_comes_back(coloured: bool, tmp_path: Path) -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colours = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3) if coloured else None
    read = read_mesh(write_mesh(tmp_path / "mesh.ply", Mesh(vertices, faces, colours)))
    np.testing.assert_array_equal(read.vertices, vertices)
    np.testing.assert_array_equal(read.faces, faces)
    if colours is None:
        assert read.colours is None
    else:
        assert read.colours is not None
        assert np.abs(read.colours - colours).max() <= 0.5 / 255 + 1e-6  # stored in 8 bits


def test_files_that_are_no_mesh_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the mesh is missing"):
        read_mesh(tmp_path / "none.ply")
    (tmp_path / "text.ply").write_text("no mesh")
    with pytest.raises(UserError, match=r"text\.ply cannot be read .*[^.!]\); write it again\.$"):
        read_mesh(tmp_path / "text.ply")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    with pytest.raises(UserError, match="no triangles"):
        read_mesh(tmp_path / "points.obj")
    for vertex in (-1, 4):
        mesh = Mesh(np.eye(4, 3, dtype=np.float32), np.array([[0, 1, 2], [0, 1, vertex]]))
        write_mesh(tmp_path / "faces.ply", mesh)
        with pytest.raises(UserError, match=r"faces\.ply has faces of vertices that are not there"):
            read_mesh(tmp_path / "faces.ply")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("new, but")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_finished_write_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    for text in ("old", "new"):
        with atomic(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert require(path, "the file") == path


def test_a_tracking_without_appearance_is_read_as_one_of_none(tmp_path: Path) -> None:
    newer = {"appearance", "gaze"}
    arrays = {name: getattr(TRACKING, name) for name in SHAPES[Tracking] if name not in newer}
    np.savez(tmp_path / "file.npz", **arrays)
    read = read_arrays(Tracking, tmp_path / "file.npz")
    assert read.appearance.shape == (len(TRACKING), 0)
    assert read[1].appearance.shape == (0,) and len(read[1:].appearance) == len(TRACKING) - 1


def test_what_drives_an_avatar_is_expression_gaze_and_appearance() -> None:
    looking = replace(TRACKING, gaze=np.full((len(TRACKING), 2), 0.1, np.float32))
    straight = looking.with_expression(0 * looking.expression)
    assert np.array_equal(straight.gaze, looking.gaze) and straight.driving[0, -1] > 0
    assert np.array_equal(looking[1].driving, looking.driving[1])
    assert len(looking[1:].gaze) == len(TRACKING) - 1
    measured = replace(TRACKING, appearance=np.ones((len(TRACKING), 2), np.float32))
    assert measured.driving.shape[1] == TRACKING.expression.shape[1] + 2
    assert np.array_equal(measured[1].driving, measured.driving[1])
    edited = measured.with_expression(0 * measured.expression)
    assert edited.appearance.shape == (len(TRACKING), 0)
    assert measured[1].with_expression([1.0]).driving.tolist() == [1.0]
