"""How many threads this process uses: one number for all its libraries and pools.

It is what ``OMP_NUM_THREADS`` says, which Snakemake sets to the ``threads`` of a rule, otherwise
all cores; never more than the process's affinity and the CPU quota of its control groups allow. A
verb passes it on to the libraries before they are loaded (`set_environment`): OpenMP (torch,
numba's kernels), MKL, torch's compiler and OpenBLAS (numpy, scipy). OpenCV has one thread, because
images are worked on side by side, by pools of this package (`make_pool`).

OpenMP's threads sleep when they have nothing to do. By default they spin for milliseconds, on cores
that the threads they wait for could use: beside other processes a training is then many times
slower. Those of GNU's OpenMP, torch's, spin for some 20 microseconds first, as it takes longer to
wake them up, and the next operation often comes before. Results do not depend on that.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "OMP_NUM_THREADS"
ALL = (VARIABLE, "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
BLAS, OPENCV = "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"
# Of GNU's, Intel's and LLVM's OpenMP. Who sets them has a reason, and the first speaks for all.
POLICY = "OMP_WAIT_POLICY"
SLEEP = {POLICY: "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def set_environment(one_for_blas: bool = False) -> None:
    """Tell all libraries by environment variables; for a process that has not yet loaded them.

    Args:
        one_for_blas: give OpenBLAS one thread: more only wait for one another where matrices are
            small, or multiplied side by side.
    """
    count = str(count_threads())
    os.environ.update(dict.fromkeys(ALL, count))
    os.environ.update({BLAS: "1" if one_for_blas else count, OPENCV: "1"})
    if POLICY not in os.environ:
        for name, value in SLEEP.items():
            os.environ.setdefault(name, value)


def provide_kernel_folder() -> None:
    """Give numba a temporary folder for compiled kernels where it would find none."""
    if os.environ.get("NUMBA_CACHE_DIR") or any(map(_is_writable, _kernel_folders())):
        return
    try:
        folder = str(_temporary_folder())
    except OSError:  # nothing can be written anywhere; numba says so when it compiles
        return
    os.environ["NUMBA_CACHE_DIR"] = folder
    if "numba" in sys.modules:  # it read the environment when it was imported
        sys.modules["numba"].config.CACHE_DIR = folder


def count_threads() -> int:
    """Threads that this process may use, at least one."""
    quota = min(_quotas(Path("/")), default=math.inf)  # of a part of a core, all is used
    allowed = math.ceil(min(len(os.sched_getaffinity(0)), quota))
    return min(allowed, _given(os.environ.get(VARIABLE), allowed))


def make_pool() -> ThreadPoolExecutor:
    """A pool of `count_threads` threads, for items that are worked on side by side.

    OpenCV's own threads would only get in their way. It has one setting for the whole process.
    """
    return ThreadPoolExecutor(count_threads(), initializer=_leave_opencv_one_thread)


def _leave_opencv_one_thread() -> None:
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


@functools.cache  # one warning
def _given(text: str | None, allowed: int) -> int:
    """The number that a variable gives; of OpenMP's list with one for each level the first."""
    if text is None:
        return allowed
    try:
        number = int(text.split(",")[0])
    except ValueError:
        number = 0
    if number > 0:
        return number
    logger.warning("%s is '%s', which is no number of threads; using %d.", VARIABLE, text, allowed)
    return allowed


def _quotas(root: Path) -> Iterator[float]:
    """The cores that each control group above this process allows, where it sets a limit.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # Inside a container the path may be the one outside, of which only the top is mounted.
        for group in (Path(path), *Path(path).parents):
            yield from _read_quota(mount / str(group).lstrip("/"))


def _read_quota(group: Path) -> Iterator[float]:
    """The cores of a group of version 2 or 1, from microseconds in a period of microseconds."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
    except OSError:
        return
    if quota not in ("max", "-1"):  # no limit
        yield int(quota) / int(period)


def _kernel_folders() -> Iterator[Path]:
    """Where numba looks for a folder for compiled kernels."""
    yield Path(__file__).parent / "__pycache__"
    given = os.environ.get("XDG_CACHE_HOME")
    cache = Path(given or os.path.expanduser("~/.cache"))  # noqa: PTH111 (Path's may raise)
    if cache.is_absolute():  # else there is no home
        yield cache / "numba"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _temporary_folder() -> Path:
    """This user's folder for kernels; one for this process where someone else has made that."""
    folder = Path(tempfile.gettempdir(), f"eavatar-kernels-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid == os.getuid() and found.st_mode & 0o077 == 0 and folder.is_dir():
        return folder
    return Path(tempfile.mkdtemp(prefix="eavatar-kernels-"))
