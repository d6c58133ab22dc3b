"""The one training loop of both stages: seed, progress, log, checkpoints, resume."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import random
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from eavatar.errors import UserError
from eavatar.io import atomic

logger = logging.getLogger(__name__)

LOG_EVERY = 10
KEPT_CHECKPOINTS = 2


class Trainable(Protocol):
    """What a stage gives to the loop."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Make one optimiser step; return the named losses and counts to be logged, each ().

        They are not looked at at once, so that the device need not be waited for.
        """

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and containers of them, enough to go on from here."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""


def seed_everything(seed: int) -> None:
    """Seed Python and torch on every device; NumPy generators are made from seeds where used.

    On the CPU sums are made in a fixed order too, at no measurable cost, so that the same seed
    gives the same model. On CUDA gsplat sums in any order, whatever is asked of torch.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def fingerprint(*parts: object) -> str:
    """A short hash of settings and sizes: a checkpoint of another run is never resumed."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def train(
    task: Trainable, steps: int, checkpoint_every: int, output: Path, name: str, run: str
) -> None:
    """Run a task to its last step, from its newest checkpoint if there is one.

    Writes ``output/log.csv`` (a row every few steps: step and the named values) and resume points
    in ``output/checkpoints``, which are removed by `finish` once the stage has saved its model.

    Args:
        task: the stage.
        steps: optimiser steps in all.
        checkpoint_every: steps between resume points.
        output: the stage's folder.
        name: what the progress bar shows.
        run: `fingerprint` of all that defines the run.
    Raises:
        UserError: a value of a step, or a tensor of a resume point, is not finite; names the step,
            the value and the last good checkpoint.
    """
    folder = output / "checkpoints"
    first, rows = _resume(task, folder, run)
    recent: list[Tensor] = []
    with tqdm(total=steps, initial=first, desc=name, unit="step", mininterval=1.0) as progress:
        for step in range(first, steps):
            values = task.step(step)
            recent.append(torch.stack([value.detach().float() for value in values.values()]))
            save = (step + 1) % checkpoint_every == 0 and step + 1 < steps
            if save or step % LOG_EVERY == 0 or step + 1 == steps:
                last = _check_finite(list(values), recent, step, folder)
                progress.update(len(recent))
                recent.clear()
                if step % LOG_EVERY == 0 or step + 1 == steps:
                    rows.append({"step": step, **last})
                    progress.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in last.items()))
            if save:
                _save(task, folder, step + 1, rows, run)
    write_log(output / "log.csv", rows)


def finish(output: Path) -> None:
    """Remove the resume points of a stage whose model is saved."""
    folder = output / "checkpoints"
    for path in folder.glob("*.pt"):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    """A CSV with a column for each name that occurs, in order of first occurrence."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _check_finite(
    names: list[str], recent: list[Tensor], step: int, folder: Path
) -> dict[str, float]:
    """The values of the last step, once those of all recent steps, up to it, are seen finite."""
    table = torch.stack(recent).tolist()
    for number, row in enumerate(table, start=step - len(table) + 1):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                _stop(f"step {number}: '{name}' is {value}", folder)
    return dict(zip(names, table[-1], strict=True))


def _check_parameters(state: Any, name: str, step: int, folder: Path) -> None:
    """Look through all tensors of a state: a resume point must be good to resume from."""
    if isinstance(state, Tensor):
        if not bool(state.isfinite().all()):
            _stop(f"step {step}: '{name}' holds values that are not finite", folder)
    elif isinstance(state, dict):
        for key, value in state.items():
            _check_parameters(value, f"{name}.{key}", step, folder)


def _stop(what: str, folder: Path) -> None:
    good = max(folder.glob("*.pt"), default=None)
    last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    raise UserError(
        f"training stopped at {what}; {last}. Lower the learning rate or look at the input frames."
    )


def _save(task: Trainable, folder: Path, step: int, rows: list[dict[str, float]], run: str) -> None:
    state = task.state()
    _check_parameters(state, "model", step, folder)
    content = {
        "run": run,
        "step": step,
        "rows": rows,
        "task": state,
        "torch_random": torch.get_rng_state(),
        "python_random": random.getstate(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic(folder / f"{step:08d}.pt") as temporary:
        torch.save(content, temporary)
    for old in sorted(folder.glob("*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _resume(task: Trainable, folder: Path, run: str) -> tuple[int, list[dict[str, float]]]:
    for path in sorted(folder.glob("*.pt"), reverse=True):
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, OSError) as error:
            logger.warning("%s cannot be read (%s); trying an older one", path, error)
            continue
        if content["run"] != run:
            logger.warning("%s belongs to other settings or inputs; starting afresh", path)
            break
        task.restore(content["task"])
        torch.set_rng_state(content["torch_random"])
        random.setstate(content["python_random"])
        if content["cuda_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_random"])
        logger.info("resuming from %s", path)
        return content["step"], content["rows"]
    finish(folder.parent)
    return 0, []
