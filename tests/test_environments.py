"""The conda environments and the extras of the package hold the same pins."""

import tomllib

import pytest
import yaml

from tests.scenes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_environment_has_the_pins_of_its_extra(path):
    pip = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
    extra = PROJECT["optional-dependencies"][path.stem]
    assert sorted(pip) == sorted(PROJECT["dependencies"] + extra)
    assert all("==" in pin for pin in pip)


def test_every_rule_names_an_environment_that_exists():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    named = {line.split("/")[-1] for line in rules.splitlines() if "/envs/" in line}
    assert {name.rstrip('"') for name in named} == {p.name for p in (ROOT / "envs").glob("*.yaml")}
