"""The environment of a generator: that there is one, that its packages load, what GPU they see."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eavatar.backends import PriorBackend
from eavatar.preflight.findings import Examination
from eavatar.settings import PriorRunSettings

PROBE_SECONDS = 300  # packages of a few GB from a slow disk


@dataclass(frozen=True)
class Deployment:
    """How a run brings the environments of generators.

    Attributes:
        run: names the interpreter.
        use_conda: whether Snakemake makes them.
    """

    run: PriorRunSettings
    use_conda: bool


def examine_generators(
    found: Examination, chosen: Iterable[tuple[PriorBackend, Deployment]]
) -> None:
    """Start each generator's program as a run does, but only to ask what it runs on."""
    for backend, deployment in dict.fromkeys(chosen):
        if backend.generator:
            _examine(found, backend, deployment)


def _examine(found: Examination, backend: PriorBackend, deployment: Deployment) -> None:
    item, python = f"generator {backend.name}", deployment.run.python
    make = f"make it from envs/{backend.name}.yaml (docs/prior.md)"
    if python is None:
        if not deployment.use_conda:
            text = (
                f"{backend.name} runs in an environment of its own, and prior.run.python names "
                f"none: {make} and name its interpreter there, or call snakemake with "
                f"--use-conda, or {backend.instead}."
            )
            found.add(item, "missing", text)
        return
    if not python.is_file():
        text = (
            f"the interpreter {python} of prior.run.python does not exist; {make}, or "
            f"{backend.instead}."
        )
        found.add(item, "missing", text)
        return
    fault, machine = probe(python, backend)
    if fault:
        found.add(item, "wrong", f"{fault.rstrip('.')}.")
        return
    _describe(found, item, backend, machine)


def probe(python: Path, backend: PriorBackend) -> tuple[str, dict[str, Any]]:
    """What a generator's program says that it runs on, by an interpreter; or why it does not."""
    assert backend.generator
    command = [str(python), str(backend.generator.program), "--probe"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, errors="replace"
        )
    except OSError as error:
        reason = error.strerror or error
        return f"{python} cannot be started ({reason}); correct prior.run.python", {}
    except subprocess.TimeoutExpired:
        return f"{python} has not loaded {backend.name} within {PROBE_SECONDS} s", {}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    try:
        if done.returncode == 0:
            machine: dict[str, Any] = json.loads(lines[-1])
            return "", machine
    except (IndexError, ValueError):
        lines.append("it printed no line of JSON")
    last = lines[-1] if lines else f"exit status {done.returncode}"
    if done.returncode == 2 and ": " in last:  # a sentence of the program's own
        return last.partition(": ")[2], {}
    reason = f"{python} cannot run {backend.generator.program.name} ({last}); it must be the "
    return f"{reason}interpreter of envs/{backend.name}.yaml, or {backend.instead}", {}


def _describe(
    found: Examination, item: str, backend: PriorBackend, machine: dict[str, Any]
) -> None:
    assert backend.generator
    licence = backend.generator.licence
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    need, has = backend.generator.memory, machine["gpu_memory_gib"]
    if has is None:
        text = f"{licence}; {packages}; it sees no CUDA device, and {need:g} GiB of one are needed"
        found.add(item, "warning", f"{text} where it runs, or {backend.instead}.")
        return
    text = f"{licence}; {packages}; {machine['device']}, {has:g} GiB of which {need:g} are needed"
    if has < need:
        text += f"; use a larger GPU, or {backend.instead}."
    found.add(item, "ok" if has >= need else "warning", text)
