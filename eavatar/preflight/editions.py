"""Which check covers what, so that one run does all that a change asks for and nothing else.

A *part* is what one of the first rules takes from the user: settings, and files by their sizes and
times. Each check of a subject is an *edition*, ``results/<subject>/check/<number>.txt``, and says
which parts it has covered. A rule waits for the first edition that covers its part; if there is
none, for the next one, which Snakemake then makes. So a rule runs again when its part changes, and
only then: a new edition leaves alone what earlier ones have covered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from eavatar.capture.layouts import list_masks, list_recordings, list_sequence_names, list_shared
from eavatar.face.flame import EMBEDDING
from eavatar.face.ict_facekit import list_face_x_model
from eavatar.io import Sequences
from eavatar.preflight.subjects import Subject
from eavatar.settings import Config

COVERS = "covers"  # begins the last line of an edition
DIGITS = 16  # of a digest
NOT_READ = ("Thumbs.db", "desktop.ini")  # from file managers, as hidden files are
CHOICE = {"sequences", "exclude", "held_out"}  # of sequences: no part of what is made of each


def list_parts(subject: Subject, config: Config, sequences: Sequences) -> dict[str, str]:
    """The parts of a subject by name, ``<rule>`` or ``<rule> <sequence>``, as digests.

    A file is known by its name below the folder that the sample sheet names: a folder that moves
    with all its times is the same.

    Args:
        subject: a row of the sample sheet.
        config: its settings.
        sequences: that these choose.
    """
    ingest = config.capture.ingest.model_dump_json(exclude=CHOICE)
    cameras = config.capture.ingest.model_dump_json(exclude=CHOICE | {"every", "jpeg_quality"})
    matte, landmarks = config.capture.matte.model_dump_json(), config.face.landmarks
    shared, recordings = _list_recorded(subject)
    parts: dict[str, list[Any]] = {
        "choose_sequences": [sequences.train, sequences.test],
        # The stored images have one size, which the cameras depend on, whatever is chosen of them.
        "calibrate": [cameras, shared, next(iter(recordings.values()), [])],
        "fit_face": [
            config.face.fit.model_dump(mode="json")["head_scale"],
            _list_model(subject, config),
        ],
        "generate_prior": [
            config.prior.generate.model_dump_json(),
            subject.prior and list_files([subject.prior], subject.prior.parent),
        ],
    }
    for name in sequences.names:
        masks = subject.mattes and list_files(list_masks(subject.mattes, name), subject.mattes)
        points = subject.landmarks and subject.landmarks / f"{name}.npz"
        detections = points and list_files([points], points.parent)
        parts[f"ingest {name}"] = [ingest, shared, recordings.get(name)]
        parts[f"matte {name}"] = [matte, masks]
        parts[f"detect_landmarks {name}"] = [landmarks.model_dump_json(), detections]
    return {name: _digest([name, *content]) for name, content in parts.items()}


def find_editions(folder: Path, digests: Iterable[str]) -> dict[str, int]:
    """The first edition that covers each part, by digest; the next number if there is none.

    Args:
        folder: ``results/<subject>/check``.
        digests: of the parts.
    """
    editions = {int(path.stem): path for path in folder.glob("*.txt") if path.stem.isdecimal()}
    covered = {number: read_covered(editions[number]) for number in sorted(editions)}
    following = max(covered, default=0) + 1
    return {
        digest: next((number for number in covered if digest in covered[number]), following)
        for digest in digests
    }


def describe_covered(digests: Sequence[str]) -> str:
    """The last line of an edition."""
    return " ".join([COVERS, *digests])


def read_covered(path: Path) -> Collection[str]:
    """The digests that an edition covers; none if it is no edition."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = lines[-1].split() if lines else []
    return words[1:] if words[:1] == [COVERS] else ()


def digest_files(places: Iterable[Path], root: Path) -> str:
    """A digest of `list_files`."""
    return _digest(list_files(places, root))


def list_files(places: Iterable[Path], root: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time in nanoseconds of all files in some places that are there.

    Nothing is opened: videos may lie on slow disks.

    Args:
        places: files and folders.
        root: the names are relative to it.
    """
    found = []
    for path in (path for place in places for path in _walk(place)):
        try:
            state = path.stat()
        except OSError:  # not there, or out of reach, which the check says
            continue
        if not S_ISDIR(state.st_mode):
            found.append((os.path.relpath(path, root), state.st_size, state.st_mtime_ns))
    return sorted(found)


def _walk(place: Path) -> Iterator[Path]:
    """A file or folder, and all files below it that may be read."""
    yield place
    for folder, _, names in os.walk(place, followlinks=True):
        for name in names:
            if not name.startswith(".") and name not in NOT_READ:
                yield Path(folder, name)


def _list_recorded(subject: Subject) -> tuple[Any, dict[str, Any]]:
    """The files that all sequences share, and each sequence's own; none if they are generated."""
    root = subject.capture
    if root is None:
        return [], {}
    recordings = list_recordings(root)
    own = {name: list_files(recordings[name], root) for name in list_sequence_names(root)}
    return list_files(list_shared(root), root), own


def _list_model(subject: Subject, config: Config) -> Any:
    """The morphable model and what it is read with beside it; none if it is generated."""
    if subject.capture is None and subject.morphable_model is None:
        return None
    model = subject.morphable_model or config.morphable_model
    beside = model.with_suffix(".txt"), model.with_name(EMBEDDING)
    return list_files([model, *beside, *list_face_x_model(model)], model.parent)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:DIGITS]
