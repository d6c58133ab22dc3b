"""Resume points of a training: written, gone on from, set aside, and what stays when it is done.

They lie in ``checkpoints`` of the stage's folder, which no rule declares as its output, so that
Snakemake leaves them alone. None is ever deleted but for a newer one of the same training.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from eavatar.io import atomic

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
FINISHED = "finished.pt"  # the last state of a training that more steps would continue
KEPT = 2  # resume points of a training that goes on
NAMED = 3  # differences that a sentence lists

Rows = list[dict[str, float]]


class Restorable(Protocol):
    """What is resumed."""

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Run:
    """A training as a whole.

    Attributes:
        name: of the stage.
        steps: optimiser steps in all.
        checkpoint_every: steps between resume points.
        definition: all that decides what a step does, by name; a checkpoint of another definition
            is never resumed.
        bound: why steps depend on how many there are in all, which makes more of them another
            training; None if they do not, and more steps continue it.
    """

    name: str
    steps: int
    checkpoint_every: int
    definition: Mapping[str, str]
    bound: str | None = None

    @property
    def full_definition(self) -> dict[str, str]:
        """The definition, and the number of steps where they depend on it."""
        bound = {f"{self.name}.steps": str(self.steps)} if self.bound else {}
        return {**self.definition, **bound}


def save(output: Path, run: Run, step: int, rows: Rows, state: dict[str, Any]) -> None:
    """Write a resume point and remove all but the newest few.

    Args:
        output: the stage's folder.
        run: the training.
        step: how many have been made.
        rows: of the log so far.
        state: of the task.
    """
    folder = output / FOLDER
    content = {
        "definition": run.full_definition,
        "step": step,
        "rows": rows,
        "task": state,
        "torch_random": torch.get_rng_state(),
        "python_random": random.getstate(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    # Through a file of Python's: torch's own does not say why it failed.
    with atomic(folder / f"{step:08d}.pt") as temporary, temporary.open("wb") as file:
        torch.save(content, file)
    for old in resume_points(output)[:-KEPT]:
        old.unlink()


def resume_points(output: Path) -> list[Path]:
    """The resume points of a training that is not finished, the newest last."""
    return sorted((output / FOLDER).glob("[0-9]*.pt"))


def resume(task: Restorable, output: Path, run: Run) -> tuple[int, Rows]:
    """Bring a task to where its training was left.

    What is there but does not fit is set aside, with a sentence.

    Returns:
        The number of steps made, and the rows of their log.
    """
    folder = output / FOLDER
    reason = "it holds no readable checkpoint"
    for path in [*reversed(resume_points(output)), folder / FINISHED]:
        if (content := _read(path)) is None:
            continue
        if misfit := _misfit(content, run, path.name == FINISHED):
            reason = misfit
            break
        task.restore(content["task"])
        torch.set_rng_state(content["torch_random"])
        random.setstate(content["python_random"])
        if content["cuda_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_random"])
        logger.info("resuming from %s", path)
        return content["step"], content["rows"]
    if any(folder.glob("*.pt")):
        logger.warning("%s", _set_aside(output, run.name, reason))
    return 0, []


def finish(output: Path, run: Run) -> None:
    """Remove the resume points of a stage whose model is saved, and say what more steps would do.

    The last state is kept if more steps continue the training.
    """
    folder = output / FOLDER
    last = folder / FINISHED
    points = resume_points(output)
    if run.bound is None and points:
        points[-1].replace(last)
    for path in folder.glob("*.pt"):
        if run.bound is not None or path != last:
            path.unlink()
    if run.bound is not None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        logger.info("more %s.steps would start afresh: %s", run.name, run.bound)
    elif last.exists():
        size = last.stat().st_size / 2**20
        logger.info("more %s.steps go on from %s (%.0f MiB)", run.name, last, size)


def _read(path: Path) -> dict[str, Any] | None:
    """What `save` wrote; None, with a sentence, if it is damaged, and if there is none."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        return content if isinstance(content, dict) else None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning("%s cannot be read (%s); trying an older one", path, reason)
        return None


def _misfit(content: Mapping[str, Any], run: Run, finished: bool) -> str | None:
    """Why a training cannot go on from a checkpoint, or None if it can."""
    theirs, ours = content.get("definition", {}), run.full_definition
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        why = f" ({run.bound})" if f"{run.name}.steps" in names and run.bound else ""
        return f"it belongs to a training with other {', '.join(names[:NAMED])}{more}{why}"
    if content["step"] > run.steps:
        return f"it is at step {content['step']}, beyond the {run.steps} that are wanted"
    if finished and content["step"] == run.steps:
        return "it is the end of the same training, which is now made anew"
    return None


def _set_aside(output: Path, name: str, reason: str) -> str:
    """Rename the checkpoints' folder; returns a sentence that says so."""
    names = (output / f"{FOLDER}-set-aside-{number}" for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    (output / FOLDER).rename(aside)
    return (
        f"{output / FOLDER} is not resumed: {reason}; it is now {aside}, which may be deleted, and "
        f"{name} starts afresh."
    )
