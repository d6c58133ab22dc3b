"""Where tensors are computed on: the CPU, or one GPU of those that this process may use.

A job uses one GPU if nothing else is set. On a host with several, each verb that needs one claims
the GPU that the fewest others of this user hold, so that jobs side by side spread over all of them:

    snakemake --cores 32 --resources gpu=2      # on two GPUs: a job on each
    snakemake --cores 32 --resources gpu=4      # two jobs on each

A claim is a locked file in the temporary folder; it ends with its process, however that ends. What
``CUDA_VISIBLE_DEVICES`` lists is all there is, so that a scheduler of a cluster that assigns one
GPU has its way. For programs that know nothing of this:

    python -m eavatar.device <program> <argument> …
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eavatar.threads import count_threads

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
PLACE = "EAVATAR_PROCESS"  # of a training that is split over several: <rank>/<count> <rendezvous>


def place() -> tuple[int, int]:
    """Rank of this process, and number of all that share a training; 0 of 1 for one by itself."""
    rank, _, count = os.environ.get(PLACE, "0/1").partition(" ")[0].partition("/")
    return int(rank), int(count)


def is_launched() -> bool:
    """Whether `eavatar.training.parallel.launch` has started this process."""
    return PLACE in os.environ


def choose_device() -> torch.device:
    """The first GPU that torch may use, otherwise the CPU."""
    import torch  # late: some stages load it for one of their backends only

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def runs_triton() -> bool:
    """Whether Triton's kernels can run on CUDA: torch brings it along, but it compiles a launcher
    for each kernel."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and find_spec("triton") is not None


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the threads that are used of it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _describe_cpu()


def describe_used() -> str:
    """Likewise, of the GPU if this process has used one."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return str(torch.cuda.get_device_name()) if torch and used else _describe_cpu()


def _describe_cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(names), platform.machine())}, {count_threads()} threads"


def claim_gpus(count: int = 1) -> None:
    """Keep some of several GPUs for this process, and what it starts; before CUDA is first used."""
    gpus = visible_gpus()
    if count and len(gpus) > 1:
        os.environ[VISIBLE] = ",".join(_claim(gpus, count, _claims_folder()))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    nodes = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(nodes))]


def _claim(gpus: Sequence[str], count: int, folder: Path) -> list[str]:
    """The GPUs that the fewest processes hold, held by this process from now on."""
    with _one_at_a_time(folder):
        held = {gpu: sum(map(_is_held, folder.glob(f"{_stem(gpu)}.*"))) for gpu in gpus}
        chosen = sorted(gpus, key=held.__getitem__)[:count]
        for gpu in chosen:
            claim, _ = tempfile.mkstemp(prefix=f"{_stem(gpu)}.", dir=folder)
            os.set_inheritable(claim, True)  # so that a program in place of this one holds it too
            fcntl.flock(claim, fcntl.LOCK_EX)
    return chosen


def _stem(gpu: str) -> str:
    return gpu.replace("/", "_")


def _is_held(path: Path) -> bool:
    """Whether the process of a claim still runs; removes the claim if it does not."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    path.unlink()
    return False


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _claims_folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"eavatar-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


if __name__ == "__main__":
    claim_gpus()
    os.execvp(sys.argv[1], sys.argv[1:])
