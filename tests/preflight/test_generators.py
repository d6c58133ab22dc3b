"""The environment of a generator: all that can be wrong with it is told before a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eavatar.backends import PRIORS
from eavatar.preflight.findings import Examination, Finding
from eavatar.preflight.generators import Deployment, examine_generators
from eavatar.settings import PriorRunSettings

TRELLIS = PRIORS["trellis"]


def examine(python: Path | None, use_conda: bool = False) -> list[Finding]:
    found = Examination()
    deployment = Deployment(PriorRunSettings(python=python), use_conda)
    examine_generators(found, [(TRELLIS, deployment), (PRIORS["template"], deployment)])
    return found.findings


def interpreter(path: Path, script: str) -> Path:
    """A file that can be started as an interpreter is, and does what a shell script says."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def answer(memory: float | None) -> str:
    machine = {"packages": {"torch": "2.4.0"}, "device": "a GPU", "gpu_memory_gib": memory}
    return f"echo TRELLIS prints more; echo '{json.dumps(machine)}'"


def test_without_an_environment_all_three_ways_on_are_named() -> None:
    (fault,) = examine(None)
    assert fault.status == "missing"
    for way in ("make it from envs/trellis.yaml", "--use-conda", "source to template"):
        assert way in fault.text
    assert examine(None, use_conda=True) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "does not exist; make it from envs/trellis.yaml"),
        (
            "echo 'eavatar run-generator: spconv cannot be imported.' >&2; exit 2",
            "spconv cannot be imported.",
        ),
        ("echo 'Illegal instruction' >&2; exit 132", "run_trellis.py (Illegal instruction)"),
        ("exit 1", "run_trellis.py (exit status 1); it must be the interpreter"),
        ("echo hello", "it printed no line of JSON"),
    ],
)
def test_an_interpreter_that_fails_is_one_sentence(
    script: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "python"
    (fault,) = examine(interpreter(path, script) if script else path)
    assert fault.status in ("missing", "wrong")
    assert said in fault.text and "\n" not in fault.text and not fault.text.endswith("..")


def test_a_file_that_is_no_program_is_told(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("hello")
    (fault,) = examine(path)
    assert f"{path} cannot be started (Permission denied); correct prior.run.python" in fault.text


def test_our_own_interpreter_is_not_the_generators() -> None:
    (fault,) = examine(Path(sys.executable))
    assert "No module named" in fault.text and fault.status == "wrong"


@pytest.mark.parametrize(
    ("memory", "status", "said"),
    [
        (24.0, "ok", "torch 2.4.0; a GPU, 24 GiB of which 16 are needed"),
        (11.0, "warning", "use a larger GPU, or set prior.generate.source to template"),
        (None, "warning", "it sees no CUDA device, and 16 GiB of one are needed"),
    ],
)
def test_gpu_memory_is_compared_with_what_is_needed(
    memory: float | None, status: str, said: str, tmp_path: Path
) -> None:
    (finding,) = examine(interpreter(tmp_path / "python", answer(memory)))
    assert finding.status == status and said in finding.text
    assert "MIT" in finding.text  # the licence stands where the generator is chosen


def test_a_licence_that_excludes_countries_is_told(tmp_path: Path) -> None:
    found = Examination()
    run = PriorRunSettings(python=interpreter(tmp_path / "python", answer(24.0)))
    examine_generators(found, [(PRIORS["hunyuan3d"], Deployment(run, False))])
    assert "not for the EU, the UK and South Korea" in found.findings[0].text
