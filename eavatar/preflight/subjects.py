"""The sample sheet: one row per subject, and the settings that hold for it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eavatar.capture.layouts import list_sequence_names
from eavatar.errors import UserError
from eavatar.settings import Config, merge, read_yaml, select, validate, variant_contents

REQUIRED = ("subject", "capture")
FILES = ("morphable_model", "landmarks", "mattes", "prior", "settings")
PATTERNS = ("sequences", "cameras")
COLUMNS = (*REQUIRED, *FILES, *PATTERNS)
TARGET = re.compile(r"(?:\./)?results/([^/]+)/(?:(?:sdf|splat|tables)/([^/]+)/)?")
GENERATED = "generated"
GENERATED_SEQUENCES = (
    "EMO-1-shout+laugh",
    "EMO-3-angry+sad",
    "EXP-1-head",
    "EXP-2-eyes",
    "EXP-5-mouth",
    "FREE",
)


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
        subject: None where its name or its capture is not usable.
        faults: what is wrong, a sentence each.
    """

    subject: Subject | None
    faults: tuple[str, ...]


def read_subjects(sheet: Path) -> dict[str, Subject]:
    """The rows of a sample sheet by subject.

    Raises:
        UserError: the first fault of the sheet or of a row; the sentence names the row.
    """
    rows = read_rows(sheet)
    for row in rows:
        if row.faults:
            raise UserError(row.faults[0])
    return {row.subject.name: row.subject for row in rows if row.subject}


def read_rows(sheet: Path) -> list[SheetRow]:
    """The rows of a sample sheet, each with all that is wrong with it.

    Raises:
        UserError: the sheet is missing or no CSV file, or a column is unknown or missing.
    """
    cells = _read_cells(sheet)
    names = [(row["subject"] or "").strip() for row in cells]
    rows = []
    for number, row in enumerate(cells):
        read = _read_row(row, f"{sheet}, subject '{names[number]}'")
        if names[number] in names[:number]:
            twice = f"{sheet} lists the subject '{names[number]}' twice; remove one row."
            read = SheetRow(None, (*read.faults, twice))
        rows.append(read)
    return rows


def _read_cells(sheet: Path) -> list[dict[str, Any]]:
    if not sheet.is_file():
        raise UserError(f"the sample sheet {sheet} does not exist; see config/README.md.")
    try:
        with sheet.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets add a mark
            reader = csv.DictReader(file)
            header, cells = list(reader.fieldnames or []), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{sheet} is not a CSV file in UTF-8 ({error}); save it as one.") from error
    if not set(REQUIRED) <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise UserError(
            f"{sheet} has columns {','.join(header)}; it needs {','.join(REQUIRED)} and may have "
            f"{','.join((*FILES, *PATTERNS))}, each once."
        )
    return cells


def _read_row(row: Mapping[str, Any], where: str) -> SheetRow:
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    name, capture, faults = cells["subject"], cells["capture"], []
    if None in row:  # where the reader puts what is beyond the last column
        faults.append(f"{where}: more cells than the sheet has columns; quote or remove a comma.")
    named = bool(name) and name != "tables" and "/" not in name and not name.startswith(".")
    if not named:
        faults.append(f"{where}: the name must be a plain folder name and not 'tables'.")
    if not capture:
        faults.append(f"{where}: the column 'capture' is empty; give the raw capture's folder.")
    raw = Path(capture) if capture and capture != GENERATED else None
    files = [Path(cells[column]) if cells[column] else None for column in FILES]
    for column, path in zip(("capture", *FILES), (raw, *files), strict=True):
        if path is not None and not path.exists():
            faults.append(f"{where}: {column} {path} does not exist; correct the sheet.")
    sequences, cameras = (tuple(cells[column].replace(";", " ").split()) for column in PATTERNS)
    model, landmarks, mattes, prior, settings = files
    subject = Subject(name, raw, model, landmarks, mattes, prior, settings, sequences, cameras)
    return SheetRow(subject if named and capture else None, tuple(faults))


def subject_config(
    subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> Config:
    """The configuration of a subject, validated; see `merged_config`.

    Raises:
        UserError: a key is unknown or a value out of range; the sentence names both.
    """
    return validate(Config, merged_config(subject, config, command_line), config_name(subject))


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
        name: validate(Config, content, f"{where}, variant '{name}'")
        for name, content in contents.items()
    }


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
    targets: Sequence[str],
    subjects: Mapping[str, Subject],
    configs: Mapping[str, Config],
    sheet: Path,
) -> None:
    """Check the subjects that targets like ``results/074/metrics.csv`` name; all if none does.

    Raises:
        UserError: a subject is not in the sheet, a variant not in its settings, or its morphable
            model does not exist.
    """
    found = [TARGET.match(target) for target in targets]
    requested = [match.groups() for match in found if match and match[1] != "tables"]
    named = [name for name, _ in requested]
    for name in named or subjects:
        if name not in subjects:
            raise UserError(
                f"subject '{name}' is not in {sheet}, which lists {', '.join(subjects)}; "
                "add a row for it."
            )
        for variant in [variant for other, variant in requested if other == name and variant]:
            if variant not in configs[name].variants:
                raise UserError(
                    f"subject '{name}' has no variant '{variant}', but "
                    f"{', '.join(configs[name].variants)}; add it to the settings' variants."
                )
        model = subjects[name].morphable_model or configs[name].morphable_model
        generated = subjects[name].capture is None and not subjects[name].morphable_model
        if not generated and not model.exists():
            raise UserError(
                f"subject '{name}': the morphable model {model} does not exist; get BFM 2017 from "
                "faces.dmi.unibas.ch (licence form), put it there, or name another file in the "
                "setting morphable_model or the sheet's column morphable_model."
            )


def list_sequences(subject: Subject, config: Config) -> list[str]:
    """The sequences that the settings choose from a subject's capture folder, sorted."""
    raw = subject.capture
    available = GENERATED_SEQUENCES if raw is None else tuple(list_sequence_names(raw))
    chosen = select(available, config.capture.ingest.sequences, config.capture.ingest.exclude)
    if not chosen:
        raise UserError(
            f"subject '{subject.name}': capture.ingest.sequences (or the sheet's column sequences) "
            f"and exclude leave none of the sequences {list(available)} in {raw}."
        )
    return chosen
