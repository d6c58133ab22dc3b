"""Data-parallel training: the views of a step are split over processes, each with a GPU of its own.

All processes hold the same parameters and make the same steps. Each draws its share of a step's
views; gradients are summed (NCCL on GPUs, gloo on the CPU), after which every optimiser takes the
same step. The first process alone writes files.

`launch` starts the processes, as copies of the verb that asked for them. Each reads its place from
the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from eavatar.device import PLACE, VISIBLE, place, visible_gpus
from eavatar.errors import UserError
from eavatar.threads import VARIABLE, count_threads

STOPPING = (signal.SIGTERM, signal.SIGUSR1)  # schedulers send one of them before they kill
POLL = 0.2  # seconds between looks at the processes
PATIENCE = timedelta(minutes=30)  # that one waits for the others, which compile meanwhile
TOLD = 2000  # characters of what a process that failed had printed


def launch(words: Sequence[str], count: int) -> int:
    """Run a verb in several processes; returns the exit status of the first that ended it.

    Signals to stop go to the first process, which stores a resume point.

    Args:
        words: of the command line.
        count: of processes.
    Raises:
        UserError: there are GPUs, but fewer than that.
    """
    gpus = visible_gpus() if torch.cuda.is_available() else []
    if 0 < len(gpus) < count:
        raise UserError(
            f"splat.run.gpus is {count}, but this process may use {len(gpus)} GPU (see "
            f"{VISIBLE}); lower it, or ask for more."
        )
    command = [sys.executable, "-m", "eavatar", *words]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rendezvous, workers = Path(folder, "rendezvous"), []
        for rank in range(count):
            log = stack.enter_context(_log(folder, rank).open("w")) if rank else None
            environment = _environment(rank, count, gpus, rendezvous)
            # A scheduler may signal all processes; the others go on until the first has stored all.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING if rank else ())
            workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status, rank = _wait(workers)
        if rank > 0:
            print(_log(folder, rank).read_text()[-TOLD:], file=sys.stderr)
    return status


def _log(folder: str, rank: int) -> Path:
    """What a process printed that is not the first, which tells the same."""
    return Path(folder, f"{rank}.log")


def _environment(rank: int, count: int, gpus: Sequence[str], rendezvous: Path) -> dict[str, str]:
    """Of a process: its place, its GPU if there are any, and its share of the CPU's threads."""
    own = {
        PLACE: f"{rank}/{count} {rendezvous}",
        VARIABLE: str(max(count_threads() // count, 1)),
    }
    return os.environ | own | ({VISIBLE: gpus[rank]} if gpus else {})


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Exit status and rank of the process that ended it all: the first, or one that failed."""
    before = {n: signal.signal(n, lambda got, _: workers[0].send_signal(got)) for n in STOPPING}
    try:
        while True:
            for rank, worker in enumerate(workers):
                status = worker.poll()
                if status is not None and (rank == 0 or status != 0):
                    return (status if status >= 0 else 128 - status), rank
            time.sleep(POLL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.kill()
            worker.wait()


def is_first() -> bool:
    """Whether this process writes files."""
    return place()[0] == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within, the processes of a launch can exchange tensors of a device."""
    rank, count = place()
    if count == 1:
        yield
        return
    rendezvous = os.environ[PLACE].partition(" ")[2]
    # A graph may be captured anew in one process alone: no handshake may depend on that.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    cuda = device.type == "cuda"
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
        device_id=torch.device("cuda", 0) if cuda else None,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def first_before_others() -> Iterator[None]:
    """The block runs in the first process, then in the others, then all go on."""
    if not is_first():
        distributed.barrier()
    yield
    if place()[1] > 1:
        if is_first():
            distributed.barrier()
        distributed.barrier()


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes, which are the same in each."""
    if place()[1] == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def largest_over_processes(tensor: Tensor) -> Tensor:
    """A tensor replaced by its largest values over all processes; returns it."""
    if place()[1] > 1:
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if place()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
