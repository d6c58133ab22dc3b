"""`doctor`: whether everything that a run will need is there, for all subjects at once.

Sample sheet, settings, inputs and machine are examined to the end whatever is found on the way: a
faulty row, block or file only keeps away what depends on it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eavatar.errors import UserError
from eavatar.preflight.check import Inputs, InputSettings, Inventory, examine_inputs, examine_model
from eavatar.preflight.findings import Examination
from eavatar.preflight.licences import examine_licences
from eavatar.preflight.machine import (
    MODEL_BYTES,
    Blocks,
    bytes_kept,
    bytes_to_write,
    count_frames,
    examine_disk,
    examine_machine,
)
from eavatar.preflight.subjects import Subject, config_name, merged_config, read_rows
from eavatar.settings import (
    Block,
    Config,
    EvaluateSettings,
    FitSettings,
    GenerateSettings,
    HavatarSettings,
    IngestSettings,
    LandmarkSettings,
    MatteSettings,
    PriorRunSettings,
    SdfSettings,
    SplatSettings,
    find_faults,
    parse_settings,
    variant_contents,
    variant_of,
)

RESULTS = Path("results")


@dataclass(frozen=True)
class Case:
    """What a subject asks of the machine.

    Attributes:
        blocks: its settings, and those of each of its variants.
        model: its morphable model, unless that is generated or the sheet names a missing file.
        frames: that it has, of all cameras.
        output: bytes that are still to be written.
    """

    blocks: tuple[Blocks, ...]
    model: Path | None
    frames: int
    output: int


def doctor(
    config: str, sheet: Path | None, subjects: Sequence[str], use_conda: bool = False
) -> None:
    """Print the table of all that was found.

    Args:
        config: a YAML file of all settings, or the settings as JSON.
        sheet: the sample sheet; the one that the settings name if None.
        subjects: names of those to look at; all if empty.
        use_conda: whether Snakemake will make the environments of the rules.
    Raises:
        UserError: something is missing or wrong.
    """
    found = examine(config, sheet, subjects, use_conda)
    print(found.table(), flush=True)
    if found.faults:
        count = len(found.faults)
        raise UserError(
            f"{count} of the items above {'is' if count == 1 else 'are'} missing or wrong; mend "
            "what is told there."
        )
    print("\nEverything that a run needs is there.", file=sys.stderr)


def examine(
    config: str, sheet: Path | None, subjects: Sequence[str], use_conda: bool = False
) -> Examination:
    """Everything that was found; see `doctor`."""
    found = Examination()
    content = found.attempt("settings", None, parse_settings, config)
    if content is None:
        return found
    name = "as given" if config.lstrip().startswith("{") else config
    faults = _find_config_faults(content)
    for fault in faults:
        found.add("settings", "wrong", f"{name}: {fault}")
    if not faults:
        found.add("settings", "ok", name)
    named = content.get("subjects")  # if it is missing, that is a fault of the settings
    sheet = sheet or (Path(str(named)) if named else None)
    rows = _examine_sheet(found, sheet, subjects) if sheet else []
    cases = [_examine_subject(found.about(row.name), row, content, faults) for row in rows]
    if not rows:
        cases = [Case(_all_blocks(content), Path(str(content.get("morphable_model"))), 0, 0)]
    for path in sorted({case.model for case in cases if case.model}):
        examine_model(found, path)
    kept = max(bytes_kept(blocks, case.frames) for case in cases for blocks in case.blocks)
    every = [blocks for case in cases for blocks in case.blocks]
    examine_machine(found, every, kept, use_conda)
    examine_disk(found, RESULTS, sum(case.output for case in cases))
    examine_licences(found, every, [case.model for case in cases])
    return found


def _examine_sheet(found: Examination, sheet: Path, subjects: Sequence[str]) -> list[Subject]:
    """The rows that can be examined further, of the wanted subjects."""
    rows = found.attempt("sample sheet", sheet, read_rows, sheet) or []
    faults = [fault for row in rows for fault in row.faults]
    names = [row.subject.name for row in rows if row.subject]
    faults += [
        f"subject '{name}' is not in {sheet}, which lists {', '.join(names)}; add a row for it."
        for name in subjects
        if name not in names
    ]
    for fault in faults:
        found.add("sample sheet", "wrong", fault)
    if rows and not faults:
        found.add("sample sheet", "ok", f"{sheet}: {', '.join(names)}")
    chosen = [row.subject for row in rows if row.subject]
    return [subject for subject in chosen if not subjects or subject.name in subjects]


def _examine_settings(
    found: Examination, subject: Subject, content: Mapping[str, Any], known: Sequence[str]
) -> Mapping[str, Any]:
    """The merged settings of a subject, whatever their faults.

    Args:
        found: receives the findings.
        subject: whose settings they are.
        content: the configuration without the subject's overlay.
        known: the faults of that.
    """
    present = subject.settings is None or subject.settings.exists()  # else the sheet is at fault
    asked = subject if present else replace(subject, settings=None)
    merged = found.attempt("settings", None, merged_config, asked, content, {})
    if merged is None:
        return content
    for fault in _find_config_faults(merged):
        if fault not in known:
            found.add("settings", "wrong", f"{config_name(subject)}: {fault}")
    return merged


def _find_config_faults(content: Mapping[str, Any]) -> list[str]:
    """All faults of the settings; of their variants, if there are none else."""
    return find_faults(Config, content) or [
        f"variant '{name}': {fault}"
        for name, variant in variant_contents(content).items()
        for fault in find_faults(Config, variant)
    ]


def _all_blocks(content: Mapping[str, Any]) -> tuple[Blocks, ...]:
    """The blocks of a configuration and, if it has no fault, of its variants."""
    variants = {} if find_faults(Config, content) else variant_contents(content)
    methods = {name: content["variants"][variant_of(name)].get("method") for name in variants}
    every = [_read_blocks(tree, methods[name]) for name, tree in variants.items()]
    return (_read_blocks(content), *every)


def _read_blocks(content: Mapping[str, Any], method: str | None = None) -> Blocks:
    """The blocks of a configuration that have no fault but unknown settings, for a method."""
    return Blocks(
        _read_block(IngestSettings, content, "capture", "ingest"),
        _read_block(MatteSettings, content, "capture", "matte"),
        _read_block(LandmarkSettings, content, "face", "landmarks"),
        _read_block(FitSettings, content, "face", "fit"),
        _read_block(GenerateSettings, content, "prior", "generate"),
        _read_block(PriorRunSettings, content, "prior", "run"),
        _read_block(SdfSettings, content, "sdf"),
        _read_block(SplatSettings, content, "splat"),
        _read_block(HavatarSettings, content, "havatar") if method == "havatar" else None,
        _read_block(EvaluateSettings, content, "tables", "evaluate"),
    )


def _read_block(kind: type[Block], content: Any, *path: str) -> Block | None:
    for name in path:
        content = content.get(name) if isinstance(content, Mapping) else None
    content = deepcopy(content)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        for fault in error.errors():
            if fault["type"] != "extra_forbidden":
                return None
            *parents, last = fault["loc"]
            reduce(getitem, parents, content).pop(last)
    return kind.model_validate(content)


def _examine_subject(
    found: Examination, subject: Subject, content: Mapping[str, Any], known: Sequence[str]
) -> Case:
    """Look at a subject's settings and inputs.

    Args:
        found: receives the findings.
        subject: to look at.
        content: the configuration without the subject's overlay.
        known: the faults of that.
    """
    merged = _examine_settings(found, subject, content, known)
    blocks, *_ = every = _all_blocks(merged)
    if subject.capture is None:
        found.add("capture", "ok", "generated by the workflow")
        return Case(every, None, 0, MODEL_BYTES)
    model = subject.morphable_model or Path(str(merged.get("morphable_model")))
    inventory = _examine_inputs(found, subject, subject.capture, blocks)
    frames = output = 0
    if blocks.ingest and inventory:
        done = RESULTS / subject.name / "capture"
        frames = count_frames(blocks.ingest, inventory)
        output = bytes_to_write(blocks.ingest, count_frames(blocks.ingest, inventory, done))
    named = subject.morphable_model is None or model.exists()  # else the sheet is at fault
    return Case(every, model if named else None, frames, output)


def _examine_inputs(
    found: Examination, subject: Subject, capture: Path, blocks: Blocks
) -> Inventory | None:
    """What the capture holds; None where it is not readable."""
    if not (blocks.ingest and blocks.matte and blocks.landmarks and blocks.fit and blocks.prior):
        found.add(
            "capture",
            "warning",
            f"{capture} was not looked at, since settings of capture, face or prior are "
            "at fault; correct them and run doctor again.",
        )
        return None
    needed = InputSettings(
        blocks.ingest, blocks.matte, blocks.landmarks, blocks.prior, blocks.fit.head_scale
    )
    inputs = Inputs(capture, subject.landmarks, subject.mattes, subject.prior)
    return examine_inputs(found, needed, inputs)
