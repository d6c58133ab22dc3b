"""The table of cross-identity pairs."""

from pathlib import Path

import pytest
import yaml

from eavatar.errors import UserError
from eavatar.io import Sequences, write_sequences
from eavatar.preflight.reenactments import read_pairs
from eavatar.preflight.subjects import COLUMNS, Plan, make_plans
from tests.scenes import CONFIG

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())


@pytest.fixture
def plans(tmp_path: Path) -> dict[str, Plan]:
    rows = "\n".join(f"{name},generated" + "," * (len(COLUMNS) - 2) for name in "ab")
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{rows}\n")
    return make_plans(tmp_path / "subjects.csv", BASE, {})[0]


def table(folder: Path, *rows: str, header: str = "avatar,driver,sequence") -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_pairs_are_named_by_their_three_cells(tmp_path, plans):
    pairs = read_pairs(table(tmp_path, "a,b,FREE", "b, a,EXP-1-head"), plans, {})
    assert list(pairs) == ["a_b_FREE", "b_a_EXP-1-head"]
    assert pairs["a_b_FREE"].driver == "b"
    assert read_pairs(table(tmp_path), plans, {}) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"avatar,driver,sequence\na,b,FREE\n,,\n",
        b"\xef\xbb\xbfAvatar;Driver;Sequence;\r\na;b;FREE;\r\n",
        b"avatar\tdriver\tsequence\n a \tb\tFREE\n",
    ],
    ids=["a row of commas", "a mark and semicolons", "tabs"],
)
def test_a_spreadsheet_may_write_the_table(tmp_path, plans, content):
    (tmp_path / "pairs.csv").write_bytes(content)
    assert list(read_pairs(tmp_path / "pairs.csv", plans, {})) == ["a_b_FREE"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "needs the columns avatar,driver,sequence"),
        (b"avatar,driver,sequence\na,b\n", "needs the columns avatar,driver,sequence"),
        (b"avatar,driver,sequence\na,b,FREE,x\n", "needs the columns avatar,driver,sequence"),
        (b"avatar,driver,sequence\na,b,M\xfcller\n", "not a CSV file in UTF-8 .*; save it as one"),
    ],
)
def test_what_is_no_table_of_pairs_is_one_sentence(tmp_path, plans, content, sentence):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"pairs\.csv .*{sentence}"):
        read_pairs(tmp_path / "pairs.csv", plans, {})


def test_pairs_of_subjects_that_cannot_run_are_left_out(tmp_path, plans):
    assert read_pairs(table(tmp_path, "a,c,FREE"), plans, {"c": "why"}) == {}


def test_a_driver_may_be_a_folder_of_a_tracked_video(tmp_path, plans):
    for folder in ("me", "other/me"):
        write_sequences(tmp_path / folder / "capture" / "sequences.json", Sequences(("clip",), ()))
        (tmp_path / folder / "face").mkdir()
        (tmp_path / folder / "face" / "identity.npz").touch()
    row = f"a,{tmp_path}/me,clip"
    pairs = read_pairs(table(tmp_path, row, "a,b,FREE"), plans, {})
    assert list(pairs) == ["a_me_clip", "a_b_FREE"]
    assert pairs["a_me_clip"].driver_results == tmp_path / "me"
    assert pairs["a_b_FREE"].driver_results == Path("results/b")
    with pytest.raises(UserError, match="me' has no sequence 'FREE', but clip"):
        read_pairs(table(tmp_path, f"a,{tmp_path}/me,FREE"), plans, {})
    with pytest.raises(UserError, match="no folder that holds a tracked face; make one"):
        read_pairs(table(tmp_path, f"a,{tmp_path}/clip.mp4,clip"), plans, {})
    with pytest.raises(UserError, match="two rows would write a_me_clip"):
        read_pairs(table(tmp_path, row, f"a,{tmp_path}/other/me,clip"), plans, {})


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a,c,FREE", "subject 'c' is not in the sample sheet"),
        ("a,b,EMO-9", "'b' has no sequence 'EMO-9', but EMO-1-shout"),
        ("a,b", "needs the columns avatar,driver,sequence"),
        ("a,b,FREE,full", "needs the columns avatar,driver,sequence"),
    ],
)
def test_a_faulty_row_is_one_sentence(tmp_path, plans, row, sentence):
    with pytest.raises(UserError, match=sentence):
        read_pairs(table(tmp_path, row), plans, {})


def test_the_variants_that_are_drawn_must_be_there(tmp_path):
    rows = f"{','.join(COLUMNS)}\na,generated{',' * (len(COLUMNS) - 2)}\n"
    (tmp_path / "subjects.csv").write_text(rows)
    block = {"variants": ["full", "small"], "smoothing": 0, "freeze_gaze": False}
    chosen = {"reenactment": block}
    plans, _ = make_plans(tmp_path / "subjects.csv", {**BASE, **chosen}, {})
    with pytest.raises(UserError, match="'a' has no variant 'small', but full"):
        read_pairs(table(tmp_path, "a,a,FREE"), plans, {})
    assert read_pairs(CONFIG / "reenactments.csv", plans, {}) == {}  # also without a pair
