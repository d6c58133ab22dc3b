"""CONTRIBUTING's table of what to touch to add something: rows that other tests do not count."""

from __future__ import annotations

import re
import sys
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from eavatar.backends import LANDMARKS, MATTING, PRIORS, RENDERERS, UPSAMPLERS, Registry
from eavatar.settings import Config, merge, validate
from tests.scenes import CONFIG, ROOT

BASE = yaml.safe_load((CONFIG / "config.yaml").read_text())
KINDS = (MATTING, LANDMARKS, PRIORS, UPSAMPLERS, RENDERERS)
MODULE = """
from eavatar.backends import {kind}

BACKEND = {kind}(name="added", run=print, instead="choose another")
"""


@pytest.mark.parametrize("registry", KINDS, ids=lambda registry: registry.setting)
def test_a_backend_of_any_kind_is_one_new_module(
    registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(next(iter(registry.values()))).__name__
    (tmp_path / "added.py").write_text(MODULE.format(kind=kind))
    folder = import_module(registry.package)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{registry.package}.added", raising=False)
    *blocks, key = registry.setting.split(".")
    overlay: dict[str, Any] = {key: "added"}
    for block in reversed(blocks):
        overlay = {block: overlay}
    config = validate(Config, merge(BASE, overlay), "test")
    assert reduce(getattr, registry.setting.split("."), config) == "added"
    assert registry["added"].run is print


def test_the_files_that_the_table_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## What do I touch") : text.index("## Release")]
    named = re.findall(r"`([\w/]+(?:/|\.(?:py|yaml|toml|txt)))`", table)
    assert len(named) > 15
    places = (ROOT, ROOT / "eavatar")
    assert [name for name in named if not any((p / name).exists() for p in places)] == []


@pytest.mark.parametrize("block", ["sdf", "splat"])
def test_a_loss_term_has_its_weight_in_two_places_and_its_name_in_one(block: str) -> None:
    weights = Config.model_fields[block].annotation.model_fields["weights"].annotation.model_fields
    assert set(weights) == set(BASE[block]["weights"])
    text = "".join(path.read_text() for path in (ROOT / "eavatar" / block).glob("*.py"))
    # A mean over pixels is also named where several GPUs share a step; a new term need not be.
    text = re.sub(r"^SHARES = .*$", "", text, flags=re.MULTILINE)
    assert {name: text.count(f'"{name}"') for name in weights} == dict.fromkeys(weights, 1)
