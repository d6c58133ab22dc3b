"""What one call of Snakemake runs again after a change: all that is concerned, and nothing else.

A subject's results are files without content that Snakemake has recorded as made; only the check
has run. Each change is made to a copy, whose dry run lists the jobs.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from eavatar.io import read_failures
from eavatar.preflight.subjects import COLUMNS
from eavatar.settings import merge
from tests.scenes import ROOT
from tests.scenes.small_capture import SERIALS
from tests.scenes.small_setup import SEQUENCES, write_subject
from tests.scenes.workflow import count_jobs, run

ROW = {
    "subject": "074",
    "capture": "raw/capture",
    "morphable_model": "raw/model.h5",
    "landmarks": "raw/landmarks",
    "mattes": "raw/mattes",
    "prior": "raw/head.ply",
    "settings": "overlay.yaml",
}
RULES = (  # in order; a job of those marked * for each sequence
    "check", "choose_sequences", "calibrate", "ingest*", "matte*", "detect_landmarks*",
    "fit_face", "refine_face", "measure_gaze", "measure_appearance", "floors", "generate_prior",
    "align_prior", "train_sdf", "train_splat", "evaluate", "metrics", "report", "overview",
)  # fmt: skip
TABLES = (
    "measure_speed",
    "paper_table",
    "paper_figure",
    "reenact",
    "figures",
    "tables",
)  # of all subjects, not asked for here


OF_GENERATORS = ("prepare_prior", "run_generator")  # of subjects with such a source
OF_BASELINES = ("train_nerface", "train_havatar")  # of variants with such a method


def jobs(first: str, *others: str, sequences: int = len(SEQUENCES)) -> dict[str, int]:
    """A rule and all after it in the order above, and single others, with their numbers of jobs."""
    names = [rule.rstrip("*") for rule in RULES]
    after = RULES[names.index(first) :] if first else []
    chosen = [rule for rule in RULES if rule in after or rule.rstrip("*") in others]
    return {rule.rstrip("*"): sequences if rule.endswith("*") else 1 for rule in chosen}


def by_command_line(**blocks: Any) -> Callable[[Path], list[str]]:
    """A change of settings by ``--config``."""

    def words(folder: Path) -> list[str]:
        return [f"{name}={json.dumps(value)}" for name, value in blocks.items()]

    return words


def by_overlay(**blocks: Any) -> Callable[[Path], list[str]]:
    """The same in the subject's overlay."""

    def change(folder: Path) -> list[str]:
        path = folder / "overlay.yaml"
        content = merge(yaml.safe_load(path.read_text()), blocks)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return []

    return change


def by_sheet(**cells: str) -> Callable[[Path], list[str]]:
    """Other cells of the sample sheet."""

    def change(folder: Path) -> list[str]:
        write_sheet(folder, {**ROW, **cells})
        return []

    return change


def by_other_file(name: str) -> Callable[[Path], list[str]]:
    """A file of the same size and an older time in place of one of the user's."""

    def change(folder: Path) -> list[str]:
        os.utime(folder / "raw" / name, (1_000_000_000, 1_000_000_000))
        return []

    return change


def nothing(folder: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class Case:
    """A change, and the jobs that it asks for."""

    change: Callable[[Path], list[str]]
    jobs: dict[str, int]


OF_INGEST = {**jobs("ingest", "check"), "fit_face": 1}
FEWER = {**jobs("refine_face", "check", "choose_sequences", "fit_face")}
CASES = {
    "nothing": Case(nothing, {}),
    "capture.demo": Case(by_command_line(capture={"demo": {"timesteps": 9}}), {}),
    "capture.ingest.every": Case(by_command_line(capture={"ingest": {"every": 2}}), OF_INGEST),
    "capture.ingest.image_size": Case(
        by_command_line(capture={"ingest": {"image_size": 64}}), jobs("calibrate", "check")
    ),
    "capture.ingest.held_out": Case(
        by_command_line(capture={"ingest": {"held_out": ["EXP-1*"]}}),
        jobs("refine_face", "check", "choose_sequences"),
    ),
    "capture.ingest.exclude": Case(
        by_command_line(capture={"ingest": {"exclude": ["EXP-2*"]}}), FEWER
    ),
    "capture.matte": Case(
        by_command_line(capture={"matte": {"max_jump": 0.3}}),
        jobs("refine_face", "check", "matte"),
    ),
    "face.landmarks": Case(
        by_command_line(face={"landmarks": {"backend": "face_alignment"}}),
        jobs("detect_landmarks", "check"),
    ),
    "face.fit": Case(by_command_line(face={"fit": {"iterations": 9}}), jobs("fit_face")),
    "face.fit.head_scale": Case(
        by_command_line(face={"fit": {"head_scale": [0.05, 0.2]}}), jobs("fit_face", "check")
    ),
    "face.refine": Case(by_command_line(face={"refine": {"rounds": 9}}), jobs("refine_face")),
    "face.gaze": Case(
        by_command_line(face={"gaze": {"image_size": 96}}),
        jobs("train_sdf", "measure_gaze", "measure_appearance", "floors"),
    ),
    "face.appearance": Case(
        by_command_line(face={"appearance": {"components": 9}}),
        jobs("train_sdf", "measure_appearance", "floors"),
    ),
    "prior.generate": Case(
        by_command_line(prior={"generate": {"source": "provided"}}),
        jobs("generate_prior", "check"),
    ),
    "prior.generate: by a generator": Case(
        by_command_line(prior={"generate": {"source": "trellis"}}),
        {**jobs("generate_prior", "check"), **dict.fromkeys(OF_GENERATORS, 1)},
    ),
    "prior.run": Case(by_command_line(prior={"run": {"python": "/env/bin/python"}}), {}),
    "prior.align": Case(by_command_line(prior={"align": {"samples": 9999}}), jobs("align_prior")),
    "seed": Case(by_command_line(seeds=[5]), jobs("align_prior")),
    "one more seed": Case(by_command_line(seeds=[0, 1]), jobs("train_sdf")),
    "held_out_cameras": Case(by_command_line(held_out_cameras=["alternate"]), jobs("train_sdf")),
    "sdf": Case(by_command_line(sdf={"width": 9}), jobs("train_sdf")),
    "sdf.run": Case(by_command_line(sdf={"run": {"checkpoint_every": 9}}), {}),
    "splat": Case(by_command_line(splat={"width": 9}), jobs("train_splat")),
    "splat.image_size": Case(
        by_command_line(splat={"image_size": 96}), jobs("train_splat", "floors")
    ),
    "nerface": Case(by_command_line(nerface={"steps": 9}), {}),
    "havatar": Case(by_command_line(havatar={"steps": 9}), {}),
    "tables.evaluate": Case(
        by_command_line(tables={"evaluate": {"pictures": 9}}), jobs("evaluate", "floors")
    ),
    "variants": Case(
        by_command_line(variants={"wide": {"splat": {"width": 9}}}), jobs("train_splat")
    ),
    "overlay: shared with the check": Case(
        by_overlay(capture={"matte": {"max_jump": 0.3}}), jobs("refine_face", "check", "matte")
    ),
    "overlay: variant": Case(
        by_overlay(variants={"full": {"tables": {"evaluate": {"pictures": 9}}}}),
        jobs("evaluate"),
    ),
    "two at once, one behind the other's check": Case(
        by_overlay(capture={"matte": {"max_jump": 0.3}}, face={"fit": {"iterations": 9}}),
        jobs("fit_face", "check", "matte"),
    ),
    "sheet: sequences": Case(by_sheet(sequences="EXP-1* FREE"), FEWER),
    "sheet: cameras": Case(by_sheet(cameras=" ".join(SERIALS[1:])), jobs("calibrate", "check")),
    "a video": Case(
        by_other_file(f"capture/sequences/EXP-2-eyes/images/cam_{SERIALS[0]}.mp4"),
        jobs("ingest", "check", sequences=1),
    ),
    "the calibration": Case(
        by_other_file("capture/calibration/camera_params.json"), jobs("calibrate", "check")
    ),
    "landmarks of one sequence": Case(
        by_other_file("landmarks/FREE.npz"), jobs("detect_landmarks", "check", sequences=1)
    ),
    "masks of one sequence": Case(
        by_other_file(f"mattes/FREE/cam_{SERIALS[0]}.mp4"),
        {**jobs("refine_face", "check"), "matte": 1},
    ),
    "the morphable model": Case(by_other_file("model.h5"), jobs("fit_face", "check")),
    "the head mesh": Case(by_other_file("head.ply"), jobs("generate_prior", "check")),
}


def write_sheet(folder: Path, *rows: dict[str, str]) -> None:
    lines = [",".join(row.get(column, "") for column in COLUMNS) for row in rows]
    (folder / "subjects.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose only subject has run, as far as Snakemake knows."""
    folder = tmp_path_factory.mktemp("project")
    write_subject(folder / "raw")
    (folder / "raw/head.ply").touch()
    for sequence in SEQUENCES:
        (folder / "raw/mattes" / sequence).mkdir(parents=True)
        for serial in SERIALS:
            (folder / "raw/mattes" / sequence / f"cam_{serial}.mp4").touch()
    (folder / "config").symlink_to(ROOT / "config")
    overlay = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    overlay["capture"]["ingest"]["sequences"] = ["*"]
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    write_sheet(folder, ROW)
    status, printed = run(folder, "results/074/check/1.txt")
    assert status == 0, printed
    status, printed = run(folder, "-n")
    assert status == 0, printed
    make_outputs(folder, printed)
    status, printed = run(folder, "--touch", "--forceall")
    assert status == 0, printed
    return folder


def make_outputs(folder: Path, printed: str) -> None:
    """Empty files and folders in place of the outputs that a dry run lists and that are missing."""
    for line in re.findall(r"^    output: (.*)$", printed, flags=re.MULTILINE):
        for path in (folder / name for name in line.split(", ")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)


def copy(project: Path, folder: Path) -> Path:
    shutil.copytree(project, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def outcomes(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a dry run after each change prints; two at a time, as each takes seconds."""
    root = tmp_path_factory.mktemp("changed")

    def dry_run(number: int, case: Case) -> str:
        folder = copy(finished, root / str(number))
        _, printed = run(folder, "-np", config=case.change(folder))
        return printed

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(dry_run, range(len(CASES)), CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_call_runs_all_that_a_change_concerns(outcomes: dict[str, str], name: str) -> None:
    found = count_jobs(outcomes[name])
    expected = CASES[name].jobs
    assert {rule: count for rule, count in found.items() if rule not in ("all", "total")} == (
        expected
    ), outcomes[name][-3000:]
    assert ("Nothing to be done" in outcomes[name]) == (not expected)


def test_a_setting_of_every_rule_is_changed() -> None:
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    used = set(re.findall(r'(?<!_)block\("([\w.]+)"\)', rules)) | {"capture.ingest"}
    assert used <= {name for case in CASES for name in (case, case.rpartition(".")[0])}
    assert set(re.findall(r"^rule (\w+):", rules, flags=re.MULTILINE)) - {
        "demo_capture",
        "doctor",
        *OF_GENERATORS,
        *OF_BASELINES,
        *TABLES,
    } == set(jobs("check"))


def test_another_layout_of_a_table_runs_that_table_again_and_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "project")
    words = ("--configfile", str(ROOT / "config/variants.yaml"))
    status, printed = run(folder, "-n", "tables", *words)
    assert status == 0, printed
    assert count_jobs(printed)["paper_table"] == 5
    make_outputs(folder, printed)
    status, printed = run(folder, "--touch", "--forceall", "tables", *words)
    assert status == 0, printed
    layouts = yaml.safe_load((ROOT / "config/tables.yaml").read_text())
    layouts["tables"]["table4"]["rows"].reverse()
    (folder / "layouts.yaml").write_text(yaml.safe_dump(layouts, sort_keys=False))
    status, printed = run(folder, "-n", "tables", *words, config=["layouts=layouts.yaml"])
    assert status == 0, printed
    found = {name: count for name, count in count_jobs(printed).items() if name != "total"}
    assert found == {"paper_table": 1, "tables": 1}
    assert "results/tables/table4.csv" in printed


def test_five_subjects_with_all_variants_are_planned_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    rows = [
        {"subject": name, "capture": "generated", "settings": str(ROOT / "tests/tiny.yaml")}
        for name in "abcde"
    ]
    write_sheet(tmp_path, *rows)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ("--configfile", str(ROOT / "config/variants.yaml"))
    status, printed = run(tmp_path, "-n", "tables", *words, "--quiet", "rules")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert status == 0, printed
    # Of the processor: what one waits on a machine that is not busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_only_what_is_chosen_is_used(outcomes: dict[str, str]) -> None:
    """A sequence that is left out is given to no stage, though its files lie beside the others."""
    printed = outcomes["sheet: sequences"]
    assert "choose-sequences --train EXP-1-head --test FREE" in printed
    fit = re.search(r"fit-face .*", printed)
    assert fit and re.findall(r"landmarks/([\w-]+)\.npz", fit[0]) == ["EXP-1-head", "FREE"]
    assert "EXP-2-eyes" not in "".join(re.findall(r"^Shell command: .*", printed, re.MULTILINE))
    printed = outcomes["capture.ingest.held_out"]
    assert "choose-sequences --train EXP-2-eyes FREE --test EXP-1-head" in printed


def test_a_check_that_fails_or_is_repeated_makes_nothing_run_again(
    finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "project")
    video = folder / f"raw/capture/sequences/FREE/images/cam_{SERIALS[0]}.mp4"
    whole = video.with_suffix(".whole")
    shutil.copy2(video, whole)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    status, printed = run(folder)
    assert status != 0
    assert str(video.relative_to(folder)) in printed
    assert count_jobs(printed)["ingest"] == 1
    assert not re.search(
        r"^(local)?rule ingest:", printed.partition("Select jobs")[2], re.MULTILINE
    )
    status, printed = run(folder, "-R", "check", "--until", "check")  # also of what ran before
    assert status != 0
    shutil.copy2(whole, video)
    whole.unlink()
    status, printed = run(folder, "-n")
    assert "Nothing to be done" in printed, printed
    status, printed = run(folder, "-R", "check", "--until", "check")
    assert status == 0, printed
    status, printed = run(folder, "-n")
    assert "Nothing to be done" in printed, printed


def test_subjects_that_cannot_run_are_named_and_the_others_run(
    finished: Path, tmp_path: Path
) -> None:
    """In the end the call fails; asked for alone, such a subject is an error at once."""
    folder = copy(finished, tmp_path / "project")
    broken = {"075": "nowhere", "076": "raw"}
    rows = [{**ROW, "subject": name, "capture": place} for name, place in broken.items()]
    write_sheet(folder, rows[0], ROW, {**ROW, "subject": "077"}, rows[1])
    words = ("--keep-going", "--until", "choose_sequences", "refuse")
    status, printed = run(folder, *words)
    assert status != 0
    assert (folder / "results/077/capture/sequences.json").stat().st_size > 0
    end = printed.partition("rule refuse:")[2]
    for name, sentence in {"075": "nowhere does not exist", "076": "no capture of a known"}.items():
        assert re.search(rf"subject '{name}': .*{sentence}", end), printed
    noted = read_failures(folder / "results/failed.csv")
    assert [(failure.subject, failure.rule) for failure in noted] == [(n, "refuse") for n in broken]
    status, printed = run(folder, "-n", "results/075/metrics.csv")
    assert status != 0
    assert "subject '075': capture nowhere does not exist" in printed
    assert "Traceback" not in printed
    status, printed = run(folder, "-n", "results/074/metrics.csv")
    assert status == 0
    assert "refuse" not in printed and "075" not in printed
