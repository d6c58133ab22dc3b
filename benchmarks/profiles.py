"""The named sets of settings that the benchmarks compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eavatar.settings import merge, read_yaml

CONFIG = Path(__file__).parents[1] / "config"
PROFILES = {
    "fast": ["config.yaml"],
    "paper": ["config.yaml", "paper.yaml"],
    "demo": ["config.yaml", "demo.yaml"],
}


def read_profile(name: str) -> dict[str, Any]:
    """All blocks of a profile's settings, not yet validated."""
    return merge(*(read_yaml(CONFIG / file) for file in PROFILES[name]))
