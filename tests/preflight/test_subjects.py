"""The sample sheet."""

import glob
import re
from pathlib import Path

import pytest
import yaml

from eavatar.errors import UserError
from eavatar.io import Sequences
from eavatar.preflight.subjects import (
    FILES,
    GENERATED_SEQUENCES,
    Subject,
    check_requested,
    choose_sequences,
    make_plans,
    read_rows,
    subject_config,
    variant_configs,
)
from eavatar.settings import merge, read_yaml
from tests.scenes import CONFIG

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())


def sheet(folder: Path, *rows: str, header: str = ",".join(("subject", "capture", *FILES))) -> Path:
    path = folder / "subjects.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read_subjects(path: Path) -> dict[str, Subject]:
    """The usable rows by subject."""
    return {row.name: row.subject for row in read_rows(path) if row.subject}


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
    assert choose_sequences(subjects["074"], config) == Sequences(("EMO-1-shout+laugh",), ("FREE",))
    demo = subject_config(subjects["demo"], BASE, {})
    assert subjects["demo"].capture is None
    assert choose_sequences(subjects["demo"], demo).names == GENERATED_SEQUENCES


def test_columns_may_be_missing_and_stand_in_any_order(tmp_path):
    raw = capture(tmp_path, "FREE")
    subject = read_subjects(sheet(tmp_path, f"{raw},074", header="capture,subject"))["074"]
    assert (subject.capture, subject.landmarks, subject.sequences) == (raw, None, ())


def test_wildcards_of_a_row_replace_those_of_the_settings(tmp_path):
    raw = capture(tmp_path, "FREE", "EXP-6-tongue-1", "EXP-1-head", "EMO-1-shout+laugh", "SEN-01")
    overlay = tmp_path / "few.yaml"
    overlay.write_text("capture: {ingest: {cameras: ['1*'], every: 2}}")
    header = "subject,capture,settings,sequences,cameras"
    row = f'074,{raw},{overlay},"EXP-* FREE;EMO-1*","2222*,2217*"'
    subject = read_subjects(sheet(tmp_path, row, header=header))["074"]
    config = subject_config(subject, BASE, {})
    assert config.capture.ingest.cameras == ("2222*", "2217*")
    assert config.capture.ingest.every == 2
    # the settings' exclude still holds: no tongue
    assert choose_sequences(subject, config).names == ("EMO-1-shout+laugh", "EXP-1-head", "FREE")
    command_line = {"capture": {"ingest": {"cameras": ["9*"]}}}
    assert subject_config(subject, BASE, command_line).capture.ingest.cameras == ("9*",)


def test_all_faults_of_all_rows_are_listed(tmp_path):
    rows = read_rows(sheet(tmp_path, "a,/no,/no.h5,,,,", ",generated,,,,,", "b,,,,,,,7"))
    assert [len(row.faults) for row in rows] == [2, 1, 2]
    assert [row.subject is None for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("074,/nowhere,,,,,", "'074': capture /nowhere does not exist"),
        ("074,,,,,,", "'074': the column 'capture' is empty"),
        ("074,/no{x}w,,,,,", "'074': capture /no{x}w does not exist"),
        ("074,generated,,/{x},,,", "'074': landmarks /{x} has { or } in its path"),
        ("../x,generated,,,,,", "plain folder name"),
        ("a{b},generated,,,,,", "plain folder name, without"),  # a wildcard of Snakemake's
        ("-a,generated,,,,,", "plain folder name, without"),  # a flag on a command line
        ("074,generated,,,,,/no.yaml", "'074': settings /no.yaml does not exist"),
        ("074,RAW,/no.h5,,,,", "'074': morphable_model /no.h5 does not exist"),
        ("074,RAW,,,,,", r"'074': the morphable model .* does not exist; get BFM 2017"),
        ("074,generated,,,,,FAULTY", r"subject '074': .*unknown setting 'sdf\.step'"),
        ("074,generated,,,,,OTHER", r"subject '074': .*variant 'x': unknown setting 'sdf\.step'"),
        ("074,EMPTY,,,,,", "subject '074': .* is no capture of a known layout"),
        ("demo,generated,,,,,", "lists the subject 'demo' twice"),
    ],
)
def test_a_faulty_subject_is_named_and_keeps_no_other_from_running(tmp_path, row, sentence):
    (tmp_path / "faulty.yaml").write_text("sdf: {step: 7}")
    (tmp_path / "other.yaml").write_text("variants: {x: {sdf: {step: 7}}}")
    (tmp_path / "empty").mkdir()
    places = {"RAW": capture(tmp_path, "FREE", "EXP-1-head"), "EMPTY": tmp_path / "empty"}
    places |= {name.upper(): tmp_path / f"{name}.yaml" for name in ("faulty", "other")}
    for word, place in places.items():
        row = row.replace(word, str(place))
    path = sheet(tmp_path, "demo,generated,,,,,", row, "sound,generated,,,,,")
    plans, faults = make_plans(path, BASE, {})
    name = row.partition(",")[0]
    assert set(plans) == {"demo", "sound"} - {name}
    assert list(faults) == [name] and re.search(sentence, faults[name])
    check_requested(["--cores", "results/sound/metrics.csv"], plans, faults, path)
    if "/" not in name:
        with pytest.raises(UserError, match=sentence):
            check_requested([f"results/{name}/metrics.csv"], plans, faults, path)
    with pytest.raises(UserError, match=sentence):
        make_plans(sheet(tmp_path, row, *(["demo,generated,,,,,"] * (name == "demo"))), BASE, {})


def test_subjects_with_the_same_settings_share_them(tmp_path):
    """Validation takes milliseconds for each of hundreds of subjects and a dozen variants."""
    (tmp_path / "few.yaml").write_text("sdf: {steps: 7}")
    rows = ("a,generated,,,,,", "b,generated,,,,,", f"c,generated,,,,,{tmp_path / 'few.yaml'}")
    plans, _ = make_plans(sheet(tmp_path, *rows), BASE, {})
    assert plans["a"].config is plans["b"].config
    assert plans["a"].variants["full"] is plans["b"].variants["full"]
    assert plans["c"].config.sdf.steps == 7 != plans["a"].config.sdf.steps


def test_a_folder_out_of_reach_is_a_fault_of_its_subject(tmp_path):
    """As on a network disk that is gone."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    long = tmp_path / ("x" * 300)  # longer than any file system takes: not "does not exist"
    for place in (loop / "074", long / "074"):
        path = sheet(tmp_path, f"074,{place},,,,,", "demo,generated,,,,,")
        plans, faults = make_plans(path, BASE, {})
        assert list(plans) == ["demo"]
        assert str(place) in faults["074"]


def test_faulty_sheets(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        make_plans(tmp_path / "none.csv", BASE, {})
    with pytest.raises(UserError, match="it needs subject,"):
        make_plans(sheet(tmp_path, header="subject,video"), BASE, {})
    with pytest.raises(UserError, match="lists no subject"):
        make_plans(sheet(tmp_path), BASE, {})
    with pytest.raises(UserError, match=r"'075' is not in .*, which lists demo"):
        path = sheet(tmp_path, "demo,generated,,,,,")
        check_requested(["results/075/metrics.csv"], *make_plans(path, BASE, {}), path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_as_spreadsheets_write_it(tmp_path, separator):
    """With rows and columns of separators alone, spaces around words, and capitals."""
    lines = [
        ["Subject ", " capture", "sequences", "", ""],
        ["", "", "", "", ""],
        [" demo", "generated ", "EXP-1* FREE", "", ""],
        ["", "", "", "", ""],
    ]
    path = tmp_path / "subjects.csv"
    text = "\r\n".join(separator.join(line) for line in lines)
    path.write_text("\ufeff" + separator * 4 + "\r\n" + text + "\r\n")
    subject = read_subjects(path)["demo"]
    assert (subject.name, subject.capture) == ("demo", None)
    assert subject.sequences == ("EXP-1*", "FREE")


def test_wildcards_may_be_separated_by_commas(tmp_path):
    header = "subject,capture,sequences,cameras"
    row = 'demo,generated,"EXP-1*, FREE","222200037,222200042"'
    subject = read_subjects(sheet(tmp_path, row, header=header))["demo"]
    assert subject.sequences == ("EXP-1*", "FREE")
    assert subject.cameras == ("222200037", "222200042")
    rows = read_rows(sheet(tmp_path, "demo,generated,EXP-1*,FREE,EMO-1*", header=header))
    assert "more cells than the sheet has columns ('EMO-1*')" in rows[0].faults[0]


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ("EXP-* FREEE", "'FREEE' of .* matches nothing: there are .*; was FREE meant"),
        ("free EXP-*", "'free' of .* matches nothing"),
        ("FREE EXP-6*", "'EXP-6\\*' of .* matches only EXP-6-tongue-1, which .*exclude"),
    ],
)
def test_a_wildcard_that_chooses_no_sequence_is_a_fault(tmp_path, patterns, sentence):
    raw = capture(tmp_path, "FREE", "EXP-1-head", "EXP-6-tongue-1")
    header = "subject,capture,sequences"
    subject = read_subjects(sheet(tmp_path, f"074,{raw},{patterns}", header=header))["074"]
    with pytest.raises(UserError, match=sentence):
        choose_sequences(subject, subject_config(subject, BASE, {}))


@pytest.mark.parametrize("name", ["masks", "plates", "visible", "a{b}", "-a"])
def test_a_sequence_whose_name_the_workflow_cannot_use_is_a_fault(tmp_path, name):
    raw = capture(tmp_path, "FREE", name)
    subject = read_subjects(sheet(tmp_path, f"074,{raw},,,,,"))["074"]
    with pytest.raises(UserError, match=rf"'074': a sequence cannot be called '{name}': masks, pl"):
        choose_sequences(subject, subject_config(subject, BASE, {}))
    others = {"capture": {"ingest": {"exclude": [glob.escape(name)]}}}
    assert choose_sequences(subject, subject_config(subject, BASE, others)).names == ("FREE",)


def test_names_that_are_odd_but_usable_are_used(tmp_path):
    names = ("FREE", "a b", "c.d+(e)", "f[1]", "ü")
    subject = read_subjects(sheet(tmp_path, f"s p.+(x),{capture(tmp_path, *names)},,,,,"))
    chosen = choose_sequences(subject["s p.+(x)"], subject_config(subject["s p.+(x)"], BASE, {}))
    assert chosen.names == names


def test_what_is_excluded_or_held_out_need_not_be_there(tmp_path):
    raw = capture(tmp_path, "EXP-1-head")
    subject = read_subjects(sheet(tmp_path, f"074,{raw},,,,,"))["074"]
    chosen = choose_sequences(subject, subject_config(subject, BASE, {}))
    assert chosen == Sequences(("EXP-1-head",), ())


def test_with_cameras_held_out_all_sequences_may_be_trained_on_and_measured(tmp_path):
    raw, overlay = capture(tmp_path, "EXP-1-head", "FREE"), tmp_path / "views.yaml"
    row = f"074,{raw},,,,,{overlay}"
    overlay.write_text("{held_out_cameras: [alternate], capture: {ingest: {held_out: []}}}")
    subject = read_subjects(sheet(tmp_path, row))["074"]
    chosen = choose_sequences(subject, subject_config(subject, BASE, {}))
    assert chosen == Sequences(("EXP-1-head", "FREE"), ("EXP-1-head", "FREE"))
    assert chosen.names == ("EXP-1-head", "FREE")
    overlay.write_text("capture: {ingest: {held_out: []}}")
    with pytest.raises(UserError, match=r"held_out_cameras must be set"):
        subject_config(subject, BASE, {})


def test_no_sequence_left(tmp_path):
    raw = capture(tmp_path, "EXP-6-tongue-1")
    subject = read_subjects(sheet(tmp_path, f"074,{raw},,,,,"))["074"]
    with pytest.raises(UserError, match=r"matches only EXP-6-tongue-1, which .*exclude"):
        choose_sequences(subject, subject_config(subject, BASE, {}))


def test_variants_are_laid_over_the_subjects_settings(tmp_path):
    overlay = tmp_path / "few.yaml"
    overlay.write_text("{splat: {steps: 7}, variants: {wide: {splat: {width: 99}}}}")
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    configs = variant_configs(subject, BASE, {})
    assert list(configs) == ["full", "wide"]
    assert configs["full"] == subject_config(subject, BASE, {})
    assert (configs["wide"].splat.steps, configs["wide"].splat.width) == (7, 99)
    assert configs["wide"].sdf == configs["full"].sdf


@pytest.mark.parametrize("block", ["sdf", "splat", "nerface", "havatar"])
def test_each_block_of_a_variant_is_laid_over_that_of_the_settings(tmp_path, block):
    overlay = tmp_path / "short.yaml"
    overlay.write_text(f"variants: {{short: {{{block}: {{steps: 3}}}}}}")
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    configs = variant_configs(subject, BASE, {})
    assert getattr(configs["short"], block).steps == 3
    assert getattr(configs["full"], block).steps == BASE[block]["steps"]


def test_the_documented_variants_are_valid(tmp_path):
    example = re.search(
        r"```yaml\n(variants:.*?)```", (CONFIG / "README.md").read_text(), re.DOTALL
    )
    assert example
    overlay = tmp_path / "variants.yaml"
    overlay.write_text(example[1])
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    assert list(variant_configs(subject, BASE, {})) == ["full", "uncontrolled", "small", "other"]


def test_each_seed_is_a_variant_and_the_first_has_its_plain_name(tmp_path):
    overlay = tmp_path / "seeds.yaml"
    overlay.write_text(
        "{seeds: [4, 0, 2], variants: {once: {seeds: [7]}, other: {method: images, images: here}}}"
    )
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    configs = variant_configs(subject, BASE, {})
    seeds = {name: config.seed for name, config in configs.items()}
    assert seeds == {"full": 4, "full@0": 0, "full@2": 2, "once": 7, "other": 4}
    assert subject_config(subject, BASE, {}).seed == 4


@pytest.mark.parametrize("profile", ["config.yaml", "demo.yaml", "paper.yaml"])
def test_the_papers_variants_are_valid_on_each_profile(tmp_path, profile):
    """And each is what the tables say that it is."""
    given = read_yaml(CONFIG / "variants.yaml")
    row = f"a,generated,,,,,{CONFIG / profile}"
    subject = read_subjects(sheet(tmp_path, row))["a"]
    configs = variant_configs(subject, merge(BASE, given), given)
    assert list(configs) == ["full", *given["variants"]]
    modules = {
        name: (
            config.splat.control.enabled,
            config.splat.split.enabled,
            config.sdf.prior.enabled,
        )
        for name, config in configs.items()
    }
    ablated = {
        "baseline": (False, False, False),
        "baseline_novel_view": (False, False, False),
        "control": (True, False, False),
        "control_split": (True, True, False),
    }
    assert modules == {**dict.fromkeys(configs, (True, True, True)), **ablated}
    assert configs["control_0.3"] == configs["split_0.2"] == configs["full"]
    sights = {name for name, config in configs.items() if config.held_out_cameras}
    assert sights == {
        "novel_view",
        "baseline_novel_view",
        "nerface_novel_view",
        "havatar_novel_view",
    }


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ("{x: {splat: {contrl: 1}}}", r"variant 'x': unknown setting 'splat\.contrl'"),
        ("{x: {splat: {upsampling: 3}}}", r"variant 'x': setting 'splat\.upsampling'"),
        ("{x: {face: {}}}", r"unknown setting 'variants\.x\.face'; .* shared by all variants"),
        ("{a/b: {}}", r"'variants\.a/b.*letters, digits"),
        ("{x: {method: images}}", "needs a folder"),
        ("{x: {images: here}}", "no other takes one"),
        ("{x: {seeds: [1, 1]}}", "each seed must stand once"),
        ("{x: {held_out_cameras: [alternate, '1*']}}", "alternate must stand alone"),
        ("{floors: {}}", "'floors' is that of the rows of the rule floors"),
        ("{x: {method: nerface, nerface: {image_size: 4096}}}", "image_size 4096 of nerface is la"),
        ("{x: {method: havatar, havatar: {image_size: 4096}}}", "image_size 4096 of havatar is la"),
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
    plans, faults = make_plans(path, BASE, {})
    assert check_requested(["results/demo/splat/full/model.yaml"], plans, faults, path) == ["demo"]
    assert check_requested(["all", "--cores", "1"], plans, faults, path) == []
    with pytest.raises(UserError, match="'demo' has no variant 'small', but full"):
        check_requested(["results/demo/sdf/small/log.csv"], plans, faults, path)


def test_a_baseline_that_no_variant_trains_may_have_larger_images_than_the_frames(tmp_path):
    overlay = tmp_path / "small.yaml"
    small = {"ingest": {"image_size": 256}}, {"image_size": 128}
    overlay.write_text(yaml.safe_dump({"capture": small[0], "sdf": small[1], "splat": small[1]}))
    subject = read_subjects(sheet(tmp_path, f"a,generated,,,,,{overlay}"))["a"]
    assert subject_config(subject, BASE, {}).nerface.image_size > 256
    trained = {"variants": {"nerface": {"method": "nerface"}}}
    with pytest.raises(UserError, match=r"'variants': its image_size 512 of nerface .* 256; lower"):
        subject_config(subject, BASE, trained)
    trained["variants"]["nerface"]["nerface"] = {"image_size": 256}
    assert variant_configs(subject, BASE, trained)["nerface"].nerface.image_size == 256
