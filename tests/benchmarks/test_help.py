"""Every benchmark that can be called has a `--help`, as `benchmarks/__init__.py` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenes import ROOT

CALLED = [
    path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text()
]


@pytest.mark.parametrize("path", CALLED, ids=lambda path: path.stem)
def test_a_benchmark_reads_its_command_line(path: Path) -> None:
    """Of its text alone: to call all would take a minute."""
    assert "ArgumentParser(" in path.read_text()
