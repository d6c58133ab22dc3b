"""What several tests, and the benchmarks, draw, write and compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
CONFIG = ROOT / "config"
