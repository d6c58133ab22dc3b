"""Provenance: by which code, from what, with which settings, where and when a result was made.

It lies beside the result, as ``provenance.json`` in a model's or a table's folder and as
``<name>.provenance.json`` beside a file, so that the result itself is the same in every run.

Of images and videos in a folder it is names and sizes that enter its checksum, which other pixels
change: they are terabytes. So may be what else is `LARGE` there, such as the originals of a camera.
The rest counts byte by byte, but for what tells times: logs and resume points.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from eavatar.device import describe_used
from eavatar.errors import UserError
from eavatar.io import check_format, read_json, write_json

logger = logging.getLogger(__name__)

NAME = "provenance.json"
FORMAT = 1
PIXELS = {
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".mp4", ".mov", ".m4v", ".mkv", ".avi",
    ".webm",
}  # fmt: skip
LARGE = 2**30  # bytes; no model and no table has so many
DEPTH = 3  # of results/<subject>/<stage>/<variant>/provenance.json; frames lie deeper
TELL_TIMES = ("checkpoints", "log.csv")  # beginnings of names


@dataclass(frozen=True)
class Record:
    """How a result was made.

    Attributes:
        verb: of the command line.
        eavatar: our version.
        commit: of the checkout that ran, with ``+changes`` if it differs; None without one.
        python: version.
        packages: versions of those that were imported, by name.
        settings: the verb's arguments that are no paths.
        inputs: path to SHA-256.
        hardware: the GPU if one was used, else the CPU.
        host: name of the machine.
        started: UTC, ISO 8601.
        seconds: that the process took; a training that was resumed, since then.
    """

    verb: str
    eavatar: str
    commit: str | None
    python: str
    packages: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, str]
    hardware: str
    host: str
    started: str
    seconds: float

    def summary(self) -> str:
        """A line for a reader of results."""
        commit = f" ({self.commit[:7]}{self.commit[40:]})" if self.commit else ""
        return f"EAvatar {self.eavatar}{commit}, {self.started[:10]}, {self.hardware}"


@contextmanager
def recorded(
    verb: str, our_version: str, arguments: Mapping[str, Any], inputs: Sequence[str], output: Path
) -> Iterator[None]:
    """Note how the block makes a result, if it does.

    Args:
        verb: of the command line.
        our_version: of the package.
        arguments: the verb's settings, by name; JSON is parsed.
        inputs: paths that it reads.
        output: what it makes, a file or a folder.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    digests = {path: digest(Path(path)) for path in inputs}
    yield
    record = Record(
        verb,
        our_version,
        _commit(Path(__file__).parent),
        platform.python_version(),
        _imported(),
        {name: _parsed(value) for name, value in arguments.items()},
        digests,
        describe_used(),
        platform.node(),
        started.isoformat(timespec="seconds"),
        round(time.perf_counter() - clock, 3),
    )
    try:
        write_json(place(output), {"format": FORMAT, **asdict(record)})
    except UserError as error:  # hours of training are not lost for it
        logger.warning("the provenance of %s is not kept: %s", output, error)


def place(output: Path) -> Path:
    """Where the provenance of a file or folder is."""
    return output / NAME if output.is_dir() else output.with_suffix(f".{NAME}")


def read_record(path: Path) -> Record:
    """Read what `recorded` wrote.

    Raises:
        UserError: it is missing, malformed or of another format.
    """
    content = read_json(path, "the provenance")
    names = [each.name for each in fields(Record)]
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise UserError(f"{path} lacks some of {', '.join(names)}; run the rule again.")
    check_format(content, FORMAT, path)
    return Record(**{name: content[name] for name in names})


def find_records(root: Path) -> dict[Path, Record]:
    """All records below a folder, in the order in which they were begun.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    patterns = (f"{'*/' * depth}*{NAME}" for depth in range(DEPTH))
    found = {path: read_record(path) for pattern in patterns for path in root.glob(pattern)}
    if not found:
        raise UserError(f"{root} holds no {NAME}; name results/<subject> of a finished run.")
    return dict(sorted(found.items(), key=lambda item: item[1].started))


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return _digest_file(path)
    whole = hashlib.sha256()
    for file in _list_files(path):
        size = file.stat().st_size
        by_size = size >= LARGE or file.suffix.lower() in PIXELS
        content = str(size) if by_size else _digest_file(file)
        whole.update(f"{file.relative_to(path)}\0{content}\n".encode())
    return whole.hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_files(folder: Path) -> list[Path]:
    """All files below a folder, but for hidden ones, provenance and what tells times.

    Links into nowhere are none, as a data set has where parts of it were not fetched.
    """

    def counts(name: str) -> bool:
        return not name.startswith((".", *TELL_TIMES)) and not name.endswith(NAME)

    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = filter(counts, folders)
        found += [Path(parent, name) for name in names if counts(name)]
    return sorted(filter(Path.is_file, found))


def _parsed(value: Any) -> Any:
    """A value as JSON holds it; text that is JSON itself as what that means."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return json.loads(value)
    return str(value) if isinstance(value, Path) else value


def _imported() -> dict[str, str]:
    """The versions of all packages of which something has been imported."""
    named = packages_distributions()
    used = {name for module in list(sys.modules) for name in named.get(module, ())}
    return {name: version(name) for name in sorted(used, key=str.lower)}


def _commit(folder: Path) -> str | None:
    """The commit of a checkout, and whether something in it has been changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
