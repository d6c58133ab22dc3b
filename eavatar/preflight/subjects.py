"""The sample sheet: one row per subject, and the settings that hold for it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eavatar.capture.layouts import check_names, is_plain, list_sequence_names
from eavatar.errors import UserError
from eavatar.io import Sequences
from eavatar.settings import (
    Config,
    Variant,
    check_patterns,
    merge,
    read_yaml,
    select,
    validate,
    variant_contents,
    variant_of,
)

REQUIRED = ("subject", "capture")
FILES = ("morphable_model", "landmarks", "mattes", "prior", "settings")
INPUTS = ("morphable_model", "landmarks", "mattes", "prior")  # that Snakemake itself is told
PATTERNS = ("sequences", "cameras")
COLUMNS = (*REQUIRED, *FILES, *PATTERNS)
SEPARATORS = (",", ";", "\t")
TARGET = re.compile(r"(?:\./)?results/([^/]+)/(?:(?:sdf|splat|nerface|havatar|tables)/([^/]+)/)?")
SHARED = ("tables", "figures", "reenactments")  # folders in results that are of all subjects
GENERATED = "generated"
GENERATED_SEQUENCES = (
    "EMO-1-shout+laugh",
    "EMO-3-angry+sad",
    "EXP-1-head",
    "EXP-2-eyes",
    "EXP-5-mouth",
    "FREE",
)
VALID: dict[str, Config] = {}  # by content: hundreds of subjects differ in a few settings, or none


@dataclass(frozen=True)
class Subject:
    """A row of the sample sheet; empty optional cells are None.

    Attributes:
        name: the subject's folder in ``results``.
        capture: raw capture, or None where our own `demo_capture` makes it.
        morphable_model: this subject's model instead of the configured one.
        landmarks: folder of provided detections.
        mattes: folder of provided alpha videos.
        prior: head mesh made elsewhere.
        settings: YAML file laid over the configuration for this subject.
        sequences: wildcards in place of those in ``capture.ingest``; none keeps them.
        cameras: likewise, of serial numbers.
    """

    name: str
    capture: Path | None
    morphable_model: Path | None = None
    landmarks: Path | None = None
    mattes: Path | None = None
    prior: Path | None = None
    settings: Path | None = None
    sequences: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()


@dataclass(frozen=True)
class SheetRow:
    """A row of the sample sheet, read as far as it can be.

    Attributes:
        name: the subject's, usable or not.
        subject: None where its name or its capture is not usable.
        faults: what is wrong, a sentence each.
    """

    name: str
    subject: Subject | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A subject that can run.

    Attributes:
        subject: its row of the sample sheet.
        config: its settings.
        variants: the settings of each of its variants with each seed, see `variant_contents`.
        sequences: what is trained on and what is held out.
    """

    subject: Subject
    config: Config
    variants: dict[str, Config]
    sequences: Sequences

    def variant(self, name: str) -> Variant:
        """A variant as the settings have it, whatever the seed in its name."""
        return self.config.variants[variant_of(name)]


def make_plans(
    sheet: Path, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> tuple[dict[str, Plan], dict[str, str]]:
    """What can run of a sample sheet, and what is wrong with each of the others, by subject.

    Args:
        sheet: the sample sheet.
        config: the configuration without the subjects' overlays.
        command_line: what the command line sets, which wins over all.

    Raises:
        UserError: the sheet cannot be read, or no subject can run.
    """
    plans: dict[str, Plan] = {}
    faults: dict[str, str] = {}
    for row in read_rows(sheet):
        try:
            if row.faults:
                raise UserError(row.faults[0])
            if row.subject:
                plans[row.name] = make_plan(row.subject, config, command_line)
        except (UserError, OSError) as error:
            named = f"subject '{row.name}'"
            where = "" if named in str(error) else f"{named}: "
            faults.setdefault(row.name, f"{where}{error}")
    sound = {name: plan for name, plan in plans.items() if name not in faults}
    if faults and not sound:
        raise UserError(next(iter(faults.values())))
    if not sound:
        raise UserError(f"{sheet} lists no subject; add a row for each.")
    return sound, faults


def make_plan(subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]) -> Plan:
    """The plan of a subject whose row has no fault.

    Raises:
        UserError: a setting of it or of a variant is faulty, its settings choose no sequence, or
            its morphable model does not exist.
    """
    own = subject_config(subject, config, command_line)
    variants = variant_configs(subject, config, command_line)
    sequences = choose_sequences(subject, own)
    model = subject.morphable_model or own.morphable_model
    generated = subject.capture is None and not subject.morphable_model
    if not generated and not model.exists():
        raise UserError(
            f"subject '{subject.name}': the morphable model {model} does not exist; get BFM 2017 "
            "from faces.dmi.unibas.ch (licence form), put it there, or name another file in the "
            "setting morphable_model or the sheet's column morphable_model."
        )
    return Plan(subject, own, variants, sequences)


def read_rows(sheet: Path) -> list[SheetRow]:
    """The rows of a sample sheet, each with all that is wrong with it.

    Raises:
        UserError: the sheet is missing or no CSV file, or a column is unknown or missing.
    """
    cells = _read_cells(sheet)
    names = [row["subject"] for row in cells]
    rows = []
    for number, row in enumerate(cells):
        name = names[number]
        read = _read_row(row, f"{sheet}, subject '{name}'")
        if name in names[:number]:
            twice = f"{sheet} lists the subject '{name}' twice; remove one row."
            read = SheetRow(name, None, (*read.faults, twice))
        rows.append(read)
    return rows


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns, in small letters, and cells of a CSV file as spreadsheets write it.

    The separator may be any of `SEPARATORS`; rows without text are left out.

    Raises:
        UserError: it is no CSV file in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets add a mark
            text = file.read()
        reader = csv.reader(io.StringIO(text), delimiter=_find_separator(text))
        lines = [[cell.strip() for cell in line] for line in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}); save it as one.") from error
    lines = [line for line in lines if any(line)]  # spreadsheets also leave rows of commas
    header = [name.lower() for name in lines[0]] if lines else []
    while header and not header[-1]:
        header.pop()
    return header, lines[1:]


def _read_cells(sheet: Path) -> list[dict[str, str]]:
    """The rows that are not empty, by column; what is beyond the last column under ``""``."""
    if not sheet.is_file():
        raise UserError(f"the sample sheet {sheet} does not exist; see config/README.md.")
    header, lines = read_table(sheet)
    if not set(REQUIRED) <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise UserError(
            f"{sheet} has columns {','.join(header)}; it needs {','.join(REQUIRED)} and may have "
            f"{','.join((*FILES, *PATTERNS))}, each once."
        )
    empty = dict.fromkeys(COLUMNS, "")
    return [
        empty | dict(zip(header, line, strict=False)) | {"": " ".join(line[len(header) :])}
        for line in lines
    ]


def _find_separator(text: str) -> str:
    """What separates the cells of a sheet: comma, semicolon or tab, whichever its header has."""
    return max(SEPARATORS, key=text.strip().partition("\n")[0].count)


def _read_row(cells: Mapping[str, str], where: str) -> SheetRow:
    name, capture, faults = cells["subject"], cells["capture"], []
    if cells[""].strip():
        faults.append(
            f"{where}: more cells than the sheet has columns ('{cells['']}'); quote what holds a "
            "separator, or remove it."
        )
    named = is_plain(name) and name not in SHARED
    if not named:
        faults.append(
            f"{where}: the name must be a plain folder name, without /, {{ and }}, that begins "
            f"with neither . nor -, and not one of {SHARED}."
        )
    if not capture:
        faults.append(f"{where}: the column 'capture' is empty; give the raw capture's folder.")
    raw = Path(capture).expanduser() if capture and capture != GENERATED else None
    files = [Path(cells[column]).expanduser() if cells[column] else None for column in FILES]
    for column, path in zip(("capture", *FILES), (raw, *files), strict=True):
        if path is not None and (fault := _find_fault(path, column in INPUTS)):
            faults.append(f"{where}: {column} {path} {fault}")
    sequences, cameras = (tuple(re.findall(r"[^\s;,]+", cells[column])) for column in PATTERNS)
    model, landmarks, mattes, prior, settings = files
    subject = Subject(name, raw, model, landmarks, mattes, prior, settings, sequences, cameras)
    return SheetRow(name, subject if named and capture else None, tuple(faults))


def _find_fault(path: Path, told: bool) -> str | None:
    """What keeps a file or folder from being read, if anything.

    Args:
        path: of it.
        told: whether Snakemake is told the path.
    """
    if told and {*"{}"} & {*str(path)}:
        return "has { or } in its path, where Snakemake looks for wildcards; rename or link it."
    try:
        return None if path.exists() else "does not exist; correct the sheet, or put it there."
    except OSError as error:  # a folder above it that is closed, a network disk that is gone
        return f"cannot be reached ({error.strerror}); see to its disk and its permissions."


def subject_config(
    subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> Config:
    """The configuration of a subject, validated; see `merged_config`.

    Raises:
        UserError: a key is unknown or a value out of range; the sentence names both.
    """
    return _validate_once(merged_config(subject, config, command_line), config_name(subject))


def variant_configs(
    subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> dict[str, Config]:
    """The configuration of each variant of a subject whose own is valid; see `subject_config`.

    Raises:
        UserError: as `subject_config`, of a variant, which the sentence names too.
    """
    contents = variant_contents(merged_config(subject, config, command_line))
    where = config_name(subject)
    return {
        name: _validate_once(content, f"{where}, variant '{name}'")
        for name, content in contents.items()
    }


def _validate_once(content: Mapping[str, Any], where: str) -> Config:
    """`validate`; subjects and variants with the same settings share the tree."""
    text = repr(content)
    if text not in VALID:
        VALID[text] = validate(Config, content, where)
    return VALID[text]


def merged_config(
    subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration under the subject's overlay, its row's wildcards and the command line."""
    overlay = read_yaml(subject.settings) if subject.settings else {}
    patterns = {"sequences": list(subject.sequences), "cameras": list(subject.cameras)}
    chosen = {"capture": {"ingest": {key: words for key, words in patterns.items() if words}}}
    return merge(config, overlay, chosen, command_line)


def config_name(subject: Subject) -> str:
    """What sentences about a subject's settings call them."""
    return "configuration" + (f" with {subject.settings}" if subject.settings else "")


def check_requested(
    targets: Sequence[str], plans: Mapping[str, Plan], faults: Mapping[str, str], sheet: Path
) -> list[str]:
    """Check the subjects that targets like ``results/074/metrics.csv`` name, and return them.

    Raises:
        UserError: a subject is faulty or not in the sheet, or a variant not in its settings.
    """
    found = [TARGET.match(target) for target in targets]
    requested = [match.groups() for match in found if match and match[1] not in SHARED]
    for name, variant in requested:
        if name in faults:
            raise UserError(faults[name])
        if name not in plans:
            raise UserError(
                f"subject '{name}' is not in {sheet}, which lists {', '.join([*plans, *faults])}; "
                "add a row for it."
            )
        known = plans[name].variants
        if variant and variant not in known:
            raise UserError(
                f"subject '{name}' has no variant '{variant}', but {', '.join(known)}; add it to "
                "the settings' variants."
            )
    return [name for name, _ in requested]


def choose_sequences(subject: Subject, config: Config) -> Sequences:
    """The sequences that the settings choose from a subject's capture folder.

    Raises:
        UserError: they choose none, one of their wildcards chooses none, or a chosen name is none
            that the workflow can use.
    """
    raw, ingest = subject.capture, config.capture.ingest
    available = GENERATED_SEQUENCES if raw is None else tuple(list_sequence_names(raw))
    try:
        check_patterns("sequences", available, ingest.sequences, ingest.exclude)
        chosen = select(available, ingest.sequences, ingest.exclude)
        check_names(chosen)
    except UserError as error:
        raise UserError(f"subject '{subject.name}': {error}") from error
    if not chosen:
        raise UserError(
            f"subject '{subject.name}': capture.ingest.sequences (or the sheet's column sequences) "
            f"and exclude leave none of the sequences {list(available)} in {raw}."
        )
    if not ingest.held_out:  # cameras are, instead
        return Sequences(tuple(chosen), tuple(chosen))
    test = tuple(select(chosen, ingest.held_out))
    return Sequences(tuple(name for name in chosen if name not in test), test)
