"""The sample sheet."""

import re
from pathlib import Path

import pytest
import yaml

from eavatar.errors import UserError
from eavatar.preflight.subjects import (
    FILES,
    GENERATED_SEQUENCES,
    check_requested,
    list_sequences,
    read_rows,
    read_subjects,
    subject_config,
    variant_configs,
)
from tests.scenes import CONFIG

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())


def sheet(folder: Path, *rows: str, header: str = ",".join(("subject", "capture", *FILES))) -> Path:
    path = folder / "subjects.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def capture(folder: Path, *sequences: str) -> Path:
    for sequence in sequences:
        (folder / "074/sequences" / sequence / "images").mkdir(parents=True)
    return folder / "074"


def test_rows_and_their_settings(tmp_path):
    raw = capture(tmp_path, "FREE", "EXP-6-tongue-1", "EMO-1-shout+laugh")
    overlay = tmp_path / "few.yaml"
    overlay.write_text("sdf: {steps: 7, width: 16}")
    rows = [f"074,{raw},,,,,{overlay}", "demo,generated,,,,,"]
    subjects = read_subjects(sheet(tmp_path, *rows))
    config = subject_config(subjects["074"], BASE, {"sdf": {"steps": 9}})
    assert (config.sdf.steps, config.sdf.width) == (9, 16)  # the command line wins
    assert list_sequences(subjects["074"], config) == ["EMO-1-shout+laugh", "FREE"]
    demo = subject_config(subjects["demo"], BASE, {})
    assert subjects["demo"].capture is None
    assert list_sequences(subjects["demo"], demo) == list(GENERATED_SEQUENCES)


def test_columns_may_be_missing_and_stand_in_any_order(tmp_path):
    raw = capture(tmp_path, "FREE")
    subject = read_subjects(sheet(tmp_path, f"{raw},074", header="capture,subject"))["074"]
    assert (subject.capture, subject.landmarks, subject.sequences) == (raw, None, ())


def test_wildcards_of_a_row_replace_those_of_the_settings(tmp_path):
    raw = capture(tmp_path, "FREE", "EXP-6-tongue-1", "EXP-1-head", "EMO-1-shout+laugh", "SEN-01")
    overlay = tmp_path / "few.yaml"
    overlay.write_text("capture: {ingest: {cameras: ['1*'], every: 2}}")
    header = "subject,capture,settings,sequences,cameras"
    row = f"074,{raw},{overlay},EXP-* FREE;EMO-1*,2222*; 2217*"
    subject = read_subjects(sheet(tmp_path, row, header=header))["074"]
    config = subject_config(subject, BASE, {})
    assert config.capture.ingest.cameras == ("2222*", "2217*")
    assert config.capture.ingest.every == 2
    # the settings' exclude still holds: no tongue
    assert list_sequences(subject, config) == ["EMO-1-shout+laugh", "EXP-1-head", "FREE"]
    command_line = {"capture": {"ingest": {"cameras": ["9*"]}}}
    assert subject_config(subject, BASE, command_line).capture.ingest.cameras == ("9*",)


def test_all_faults_of_all_rows_are_listed(tmp_path):
    rows = read_rows(sheet(tmp_path, "a,/no,/no.h5,,,,", ",generated,,,,,", "b,,,,,,,7"))
    assert [len(row.faults) for row in rows] == [2, 1, 2]
    assert [row.subject is None for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("074,/nowhere,,,,,", "capture /nowhere does not exist"),
        ("074,,,,,,", "the column 'capture' is empty"),
        ("../x,generated,,,,,", "plain folder name"),
        ("074,generated,,,,,/no.yaml", "settings /no.yaml does not exist"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, row, sentence):
    with pytest.raises(UserError, match=sentence):
        read_subjects(sheet(tmp_path, row))


def test_faulty_sheets(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_subjects(tmp_path / "none.csv")
    with pytest.raises(UserError, match="it needs subject,"):
        read_subjects(sheet(tmp_path, header="subject,video"))
    with pytest.raises(UserError, match="'a' twice"):
        read_subjects(sheet(tmp_path, "a,generated,,,,,", "a,generated,,,,,"))


def test_requested_subjects_are_checked(tmp_path):
    raw = capture(tmp_path, "FREE")
    path = sheet(tmp_path, f"074,{raw},,,,,", "demo,generated,,,,,")
    subjects = read_subjects(path)
    configs = {name: subject_config(subject, BASE, {}) for name, subject in subjects.items()}
    check_requested(["--cores", "results/demo/metrics.csv"], subjects, configs, path)
    with pytest.raises(UserError, match="'075' is not in"):
        check_requested(["results/075/metrics.csv"], subjects, configs, path)
    with pytest.raises(UserError, match=r"morphable model .* does not exist; get BFM 2017"):
        check_requested([], subjects, configs, path)


def test_no_sequence_left(tmp_path):
    raw = capture(tmp_path, "EXP-6-tongue-1")
    subject = read_subjects(sheet(tmp_path, f"074,{raw},,,,,"))["074"]
    with pytest.raises(UserError, match="leave none of the sequences"):
        list_sequences(subject, subject_config(subject, BASE, {}))


def test_variants_are_laid_over_the_subjects_settings(tmp_path):
    overlay = tmp_path / "few.yaml"
    overlay.write_text("{splat: {steps: 7}, variants: {wide: {splat: {width: 99}}}}")
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    configs = variant_configs(subject, BASE, {})
    assert list(configs) == ["full", "wide"]
    assert configs["full"] == subject_config(subject, BASE, {})
    assert (configs["wide"].splat.steps, configs["wide"].splat.width) == (7, 99)
    assert configs["wide"].sdf == configs["full"].sdf


def test_the_documented_variants_are_valid(tmp_path):
    example = re.search(
        r"```yaml\n(variants:.*?)```", (CONFIG / "README.md").read_text(), re.DOTALL
    )
    assert example
    overlay = tmp_path / "variants.yaml"
    overlay.write_text(example[1])
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    assert list(variant_configs(subject, BASE, {})) == ["full", "uncontrolled", "small", "other"]


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ("{x: {splat: {contrl: 1}}}", r"variant 'x': unknown setting 'splat\.contrl'"),
        ("{x: {splat: {upsampling: 3}}}", r"variant 'x': setting 'splat\.upsampling'"),
        ("{x: {face: {}}}", r"unknown setting 'variants\.x\.face'; .* shared by all variants"),
        ("{a/b: {}}", r"'variants\.a/b.*letters, digits"),
        ("{x: {method: images}}", "needs a folder"),
        ("{x: {images: here}}", "no other takes one"),
        ("{full: {method: images, images: here}}", "one of them must have the method avatar"),
    ],
)
def test_a_faulty_variant_is_one_sentence(tmp_path, variants, sentence):
    overlay = tmp_path / "few.yaml"
    overlay.write_text(f"variants: {variants}")
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    with pytest.raises(UserError, match=sentence):
        subject_config(subject, BASE, {})
        variant_configs(subject, BASE, {})


def test_a_requested_variant_must_be_one_of_the_subject(tmp_path):
    path = sheet(tmp_path, "demo,generated,,,,,")
    subjects = read_subjects(path)
    configs = {"demo": subject_config(subjects["demo"], BASE, {})}
    check_requested(["results/demo/splat/full/model.yaml"], subjects, configs, path)
    with pytest.raises(UserError, match="'demo' has no variant 'small', but full"):
        check_requested(["results/demo/sdf/small/log.csv"], subjects, configs, path)
