"""The one training loop of both stages: seed, progress, log, checkpoints, resume."""

from __future__ import annotations

import csv
import gc
import math
import random
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from eavatar.errors import Interrupted, UserError
from eavatar.io import atomic
from eavatar.training.checkpoints import Rows, Run, finish, resume, resume_points, save
from eavatar.training.parallel import STOPPING, first_before_others, is_first

__all__ = ["Run", "Trainable", "finish", "seed_everything", "train"]

LOG_EVERY = 10
MAX_UNSAVED = 300.0  # seconds: what a training that is killed without a word loses at most


class Trainable(ABC):
    """What a stage gives to the loop; as a context it ends with `close`."""

    @abstractmethod
    def step(self, step: int) -> dict[str, Tensor]:
        """Make one optimiser step; return the named losses and counts to be logged, each ().

        They are not looked at at once, which spares a host-device synchronisation.
        """

    @abstractmethod
    def describe(self, step: int) -> str:
        """What a step sees, for the reader of a message."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors, numbers and containers of them, enough to go on from here."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""

    def is_over(self, made: int) -> bool:
        """Whether no step is wanted after so many, although the run has more."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give back what the steps needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def seed_everything(seed: int) -> None:
    """Seed Python and torch on every device; NumPy generators are made from seeds where used.

    On the CPU sums are made in a fixed order too, at no measurable cost, so that the same seed
    gives the same model. On CUDA gsplat sums in any order, whatever is asked of torch.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def train(task: Trainable, run: Run, output: Path) -> None:
    """Run a task to its last step, from its newest checkpoint if there is one that fits.

    Writes ``output/log.csv`` (a row every few steps: step, seconds of training up to it in all its
    runs, and the named values) and resume points, see `eavatar.training.checkpoints`, with which
    `finish` deals once the stage has saved its model. A resume point is also written five minutes
    after the last one, and where SIGTERM or SIGUSR1 asks for the end.

    Args:
        task: the stage.
        run: its settings for the loop.
        output: the stage's folder.
    Raises:
        UserError: a value of a step, or a tensor of a resume point, is not finite; names the step,
            the value and the last good checkpoint.
        Interrupted: a signal has asked for the end; the same call goes on from this step.
    """
    with first_before_others():
        first, rows = resume(task, output, run)
    if first < run.steps:  # the log of an unbroken training has no row for a last step in between
        rows = [row for row in rows if row["step"] % LOG_EVERY == 0]
    recent: list[Tensor] = []
    started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    gc.freeze()  # what lives by now stays, and is not looked through for garbage every few steps
    progress = tqdm(total=run.steps, initial=first, desc=run.name, unit="step", mininterval=1)
    with progress as bar, _stop_signals() as stopping:
        unsaved_since = time.monotonic()
        for step in range(first, run.steps):
            values = task.step(step)
            recent.append(torch.stack([value.detach().float() for value in values.values()]))
            last = step + 1 == run.steps or task.is_over(step + 1)
            late = time.monotonic() - unsaved_since > MAX_UNSAVED
            due = (step + 1) % run.checkpoint_every == 0 or late or stopping.is_set()
            saved = run.bound is None if last else due
            logged = last or step % LOG_EVERY == 0
            if saved or logged:
                newest = _check_finite(task, list(values), recent, step, output)
                bar.update(len(recent))
                recent.clear()
            if logged:
                seconds = round(time.perf_counter() - started, 3)
                rows.append({"step": step, "seconds": seconds, **newest})
                bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in newest.items()))
            if saved:
                state = task.state()
                _check_state(state, "model", step + 1, output)
                if is_first():
                    save(output, run, step + 1, rows, state)
                unsaved_since = time.monotonic()
            if last:
                break
            if saved and stopping.is_set():
                raise Interrupted(
                    f"training was asked to stop and has stored step {step + 1} of {run.steps}; "
                    "run it again to go on from there."
                )
    if is_first():
        write_log(output / "log.csv", rows)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the signals set in the first process, instead of ending it within a step."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield asked
        return

    def ask(*_: object) -> None:
        if is_first():  # others wait for it, and are ended by what launched them
            asked.set()

    before = {number: signal.signal(number, ask) for number in STOPPING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_log(path: Path, rows: Rows) -> None:
    """A CSV with a column for each name that occurs, in order of first occurrence."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _check_finite(
    task: Trainable, names: list[str], recent: list[Tensor], step: int, output: Path
) -> dict[str, float]:
    """The values of the last step, once those of all recent steps, up to it, are seen finite."""
    table = torch.stack(recent).tolist()
    for number, row in enumerate(table, start=step - len(table) + 1):
        bad = [f"{n} is {v}" for n, v in zip(names, row, strict=True) if not math.isfinite(v)]
        if bad:
            seen = f" of {task.describe(number)}"
            _stop(f"step {number}, where {', '.join(bad)}", seen, output)
    return dict(zip(names, table[-1], strict=True))


def _check_state(state: Any, name: str, step: int, output: Path) -> None:
    """Look through all tensors of a state: a resume point must be good to resume from."""
    if isinstance(state, Tensor):
        if not bool(state.isfinite().all()):
            _stop(f"step {step}, where {name} holds values that are not finite", "", output)
    elif isinstance(state, dict):
        for key, value in state.items():
            _check_state(value, f"{name}.{key}", step, output)


def _stop(what: str, seen: str, output: Path) -> None:
    """Stop with what is known, and what to try in order."""
    good = max(resume_points(output), default=None)
    last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    raise UserError(
        f"training stopped at {what}; {last}. Run it again to go on from there; if it stops at the "
        f"same step, look at the images, masks and tracking{seen}; if these are right, lower the "
        "learning rates, which starts the training afresh."
    )
