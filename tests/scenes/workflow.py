"""Snakemake as a user calls it, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.scenes import ROOT


def start(
    folder: Path, *words: str, config: Sequence[str] = (), output: IO[str] | int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """A call that goes on; ``config`` is what the command line sets beside the sheet."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += [] if "--profile" in words else ["--cores", "2"]
    command += [*words, "--config", "subjects=subjects.csv", *config]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def run(
    folder: Path, *words: str, config: Sequence[str] = (), seconds: float = 400
) -> tuple[int, str]:
    """Exit status and what a call printed."""
    process = start(folder, *words, config=config)
    printed, _ = process.communicate(timeout=seconds)
    return process.returncode, printed


def count_jobs(printed: str) -> dict[str, int]:
    """Jobs by rule, from the table that a dry run prints."""
    rows = re.findall(r"^(\w+) +(\d+)$", printed.partition("Job stats:")[2], flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows}
