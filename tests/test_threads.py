"""One number of threads for all libraries and pools, and threads that sleep when idle."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eavatar import threads

ROOT = Path(__file__).parents[1]
CORES = 16  # of the machine that the tests pretend to run on


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(threads, "_quotas", lambda root: iter(()))
    threads._given.cache_clear()


# --- how many ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"), [(None, CORES), ("2", 2), (" 3 ", 3), ("4,2", 4), ("128", CORES)]
)
def test_threads_are_those_given_and_at_most_the_cores(
    given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads.count_threads() == expected
    assert threads.make_pool()._max_workers == expected
    assert not caplog.records


@pytest.mark.parametrize("given", ["", "0", "-2", "many", "2.5"])
def test_what_is_no_number_of_threads_is_one_warning(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with caplog.at_level(logging.WARNING):
        assert [threads.count_threads() for _ in range(3)] == [CORES] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"OMP_NUM_THREADS is '{given}', which is no number of threads; using {CORES}."
    ]


def write_groups(root: Path, own: str, files: dict[str, str]) -> None:
    """A file system in which this process is in some control groups that have limits."""
    for name, text in {"proc/self/cgroup": own, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "9:name=systemd:/\n4:cpuset:/jobs\n3:cpu,cpuacct:/jobs/7\n"


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/jobs/7\n", {"sys/fs/cgroup/jobs/7/cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/jobs/7\n", {"sys/fs/cgroup/jobs/7/cpu.max": "max 100000\n"}, []),
        # the group above has the limit
        ("0::/jobs/7\n", {"sys/fs/cgroup/jobs/cpu.max": "200000 100000\n"}, [2]),
        # in a container, where only its own group is mounted
        ("0::/outside/7\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, [0.5]),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            [4],
        ),
        (V1, {}, []),
    ],
)
def test_quotas_of_control_groups_are_read(
    own: str, files: dict[str, str], quotas: list[float], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.undo()
    write_groups(tmp_path, own, files)
    assert list(threads._quotas(tmp_path)) == quotas


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    assert list(threads._quotas(tmp_path)) == []


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.5, 2), (3, 3), (64, CORES)])
def test_threads_are_at_most_the_quota(quota: float, expected: int, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_quotas", lambda root: iter((quota, 100)))
    assert threads.count_threads() == expected


# --- what the libraries make of it ------------------------------------------------------------


def run(code: str, **environment: str) -> str:
    """What a fresh process prints, without the thread variables of this one."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.search(r"THREADS|^G?OMP_|^KMP_|^NUMBA_", name)
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, "PYTHONPATH": str(ROOT), **environment},
        cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


MACHINE = f"""
import os
os.sched_getaffinity = lambda _: set(range({CORES}))
from eavatar import threads
threads._quotas = lambda root: iter(())
"""
LIBRARIES = """
threads.set_environment()
import ctypes, re
import cv2, numba, numpy, torch
from pathlib import Path
blas, = set(re.findall(r"\\S*/libscipy_openblas64\\S*", Path("/proc/self/maps").read_text()))
in_numpy = ctypes.CDLL(blas).scipy_openblas_get_num_threads64_()
pool = threads.make_pool()._max_workers
print(torch.get_num_threads(), numba.get_num_threads(), pool, in_numpy, cv2.getNumThreads())
print(os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"])
"""


def test_a_job_of_two_threads_makes_no_larger_pool_on_a_larger_machine() -> None:
    """As eight rules of two threads do under ``--cores 16``."""
    found = run(MACHINE + LIBRARIES, OMP_NUM_THREADS="2")
    assert found.split() == ["2", "2", "2", "2", "1", "PASSIVE", "2"]


@pytest.mark.parametrize(("given", "count"), [("", CORES), ("0", CORES), ("4,2", 4)])
def test_the_libraries_take_what_a_verb_makes_of_odd_numbers(given: str, count: int) -> None:
    odd = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), given)
    # torch and OpenBLAS start, too, but limit themselves to the cores that there really are.
    _, in_numba, pool, *_, told = run(MACHINE + LIBRARIES, **odd).split()
    assert in_numba == pool == told == str(count)


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_that_wait_do_as_they_were_told(given: dict[str, str], spins: str) -> None:
    code = "threads.set_environment(); print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(MACHINE + code, **given).strip() == spins


def test_an_importer_keeps_the_environment() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "import eavatar.data.loader, eavatar.rendering.cpu\n"
        "print({k: v for k, v in os.environ.items() if 'THREAD' in k or k.startswith('OMP')})"
    )
    assert run(code).strip() == "{}"


def test_the_verbs_set_threads_before_any_library_is_loaded() -> None:
    code = (
        "import sys, eavatar.__main__\n"
        "print({'numpy', 'torch', 'numba', 'cv2', 'scipy'} & set(sys.modules))"
    )
    assert run(code).strip() == "set()"


VERB = """
from eavatar.__main__ import main
words = [word for flag in "{flags}".split() for word in ("--" + flag, "0")]
assert main(["{verb}", *words]) == 2  # a sentence on the settings
print(os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize(
    ("verb", "flags", "blas"),
    [
        ("fit-face", "settings morphable-model capture landmarks output", 1),
        ("refine-face", "settings morphable-model capture fit output", 1),
        ("measure-gaze", "settings morphable-model capture face output", 1),
        ("measure-appearance", "settings morphable-model capture face output", 1),
        ("align-prior", "settings seed raw capture face output", CORES),
    ],
)
def test_a_verb_by_hand_gives_blas_the_threads_that_suit_it(
    verb: str, flags: str, blas: int
) -> None:
    assert run(MACHINE + VERB.format(verb=verb, flags=flags)).split() == [str(blas), str(CORES)]


def test_the_fit_asks_the_workflow_for_the_one_thread_that_it_uses() -> None:
    rules = (ROOT / "workflow" / "rules" / "face.smk").read_text()
    fit = rules[rules.index("rule fit_face:") : rules.index("rule refine_face:")]
    assert "threads:" not in fit  # one, if a rule says nothing


def test_no_rule_sets_threads_past_the_policy() -> None:
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        assert "_NUM_THREADS" not in path.read_text(), path


# --- compiled kernels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import eavatar.data.images as m; print('composite')",
        "import eavatar.rendering.cpu as m; print('composite')",
        "import numba, eavatar.capture.colour; print('composite')",
        "import eavatar.demo.sculpt, eavatar.face.photometric; print('composite')",
    ],
)
def test_kernels_compile_in_an_installation_that_nobody_may_write_to(
    code: str, tmp_path: Path
) -> None:
    package = shutil.copytree(
        ROOT / "eavatar", tmp_path / "eavatar", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
        (folder / "__pycache__").touch()  # a file: not even root can make a folder of it
    places = {"PYTHONPATH": str(tmp_path), "HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    places["XDG_CACHE_HOME"] = "/dev/null/cache"
    assert "composite" in run(code, **places)
    (made,) = tmp_path.glob("eavatar-kernels-*")
    assert made.stat().st_mode & 0o077 == 0  # compiled code that others cannot replace


def test_kernels_of_another_owner_are_not_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_to_all = tmp_path / f"eavatar-kernels-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    chosen = threads._temporary_folder()
    assert chosen != open_to_all and chosen.stat().st_mode & 0o077 == 0
