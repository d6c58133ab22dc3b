"""``results/failed.csv``: what has failed in a run of many subjects, a line for each job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eavatar.io import Failure, write_rows

SENTENCE = re.compile(r"(?:.*\])?eavatar [a-z-]+: (.+)")  # perhaps behind a bar of progress
SILENT = (
    "the job ended without a word: it was cancelled, or killed for memory, for its time, or with "
    "its machine; run it again."
)


def read_sentence(log: Path) -> str:
    """What a failed job's log says last: the sentence of its error, or else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    told = [found[1] for line in lines if (found := SENTENCE.fullmatch(line))]
    if told:
        return told[-1]
    traced = any(line.startswith("Traceback ") for line in lines)
    return lines[-1] if traced else SILENT


def note_failures(failures: Sequence[Failure], output: Path) -> None:
    """Write the failures of a run; a file of an earlier one goes where there are none."""
    if failures:
        write_rows(output, sorted(failures))
    else:
        output.unlink(missing_ok=True)
