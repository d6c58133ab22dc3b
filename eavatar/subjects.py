"""The sample sheet: one row per subject, and the settings that hold for it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eavatar.errors import UserError
from eavatar.settings import Config, merge, read_yaml, select, validate

COLUMNS = ("subject", "capture", "morphable_model", "landmarks", "mattes", "prior", "settings")
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
        landmarks: folder of provided detections; mattes: folder of provided alpha videos.
        prior: head mesh made elsewhere.
        settings: YAML file laid over the configuration for this subject.
    """

    name: str
    capture: Path | None
    morphable_model: Path | None
    landmarks: Path | None
    mattes: Path | None
    prior: Path | None
    settings: Path | None


def read_subjects(sheet: Path) -> dict[str, Subject]:
    """The rows of a sample sheet by subject.

    Raises:
        UserError: the sheet is missing, a column is unknown or missing, a subject stands twice, a
            path does not exist; the sentence names the row.
    """
    if not sheet.is_file():
        raise UserError(f"the sample sheet {sheet} does not exist; see config/README.md.")
    with sheet.open(newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if sorted(header) != sorted(COLUMNS):
            raise UserError(
                f"{sheet} has columns {','.join(header)}; it needs {','.join(COLUMNS)}."
            )
        rows = list(reader)
    subjects: dict[str, Subject] = {}
    for row in rows:
        subject = _subject(row, f"{sheet}, subject '{row['subject']}'")
        if subject.name in subjects:
            raise UserError(f"{sheet} lists the subject '{subject.name}' twice; remove one row.")
        subjects[subject.name] = subject
    return subjects


def _subject(row: Mapping[str, str | None], where: str) -> Subject:
    cells = {column: (row[column] or "").strip() for column in COLUMNS}
    name = cells["subject"]
    if not name or name == "tables" or "/" in name or name.startswith("."):
        raise UserError(f"{where}: the name must be a plain folder name and not 'tables'.")
    if not cells["capture"]:
        raise UserError(f"{where}: the column 'capture' is empty; give the raw capture's folder.")
    paths = {column: Path(cells[column]) if cells[column] else None for column in COLUMNS[1:]}
    if cells["capture"] == GENERATED:
        paths["capture"] = None
    for column, path in paths.items():
        if path is not None and not path.exists():
            raise UserError(f"{where}: {column} {path} does not exist; correct the sheet.")
    return Subject(name, **paths)


def subject_config(
    subject: Subject, config: Mapping[str, Any], command_line: Mapping[str, Any]
) -> Config:
    """The configuration, with the subject's overlay on it and the command line on top of both.

    Raises:
        UserError: a key is unknown or a value out of range; the sentence names both.
    """
    overlay = read_yaml(subject.settings) if subject.settings else {}
    where = "configuration" + (f" with {subject.settings}" if subject.settings else "")
    return validate(Config, merge(config, overlay, command_line), where)


def check_requested(
    targets: Sequence[str],
    subjects: Mapping[str, Subject],
    configs: Mapping[str, Config],
    sheet: Path,
) -> None:
    """Check the subjects that targets like ``results/074/metrics.csv`` name; all if none does.

    Raises:
        UserError: a subject is not in the sheet, or its morphable model does not exist.
    """
    found = [re.match(r"(?:\./)?results/([^/]+)/", target) for target in targets]
    named = [match[1] for match in found if match and match[1] != "tables"]
    for name in named or subjects:
        if name not in subjects:
            raise UserError(
                f"subject '{name}' is not in {sheet}, which lists {', '.join(subjects)}; "
                "add a row for it."
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
    if subject.capture is None:
        available = list(GENERATED_SEQUENCES)
    else:
        available = sorted(path.parent.name for path in subject.capture.glob("sequences/*/images"))
    chosen = select(available, config.capture.ingest.sequences, config.capture.ingest.exclude)
    if not chosen:
        raise UserError(
            f"subject '{subject.name}': capture.ingest.sequences and exclude leave none of the "
            f"sequences {available} in {subject.capture}."
        )
    return chosen
