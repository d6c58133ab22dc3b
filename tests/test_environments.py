"""Ranges of the package, tested versions in constraints.txt and envs/: they agree."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from eavatar.backends import PRIORS
from tests.scenes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]
WITH = {"capture": ("rembg",)}  # extras beside the one of the environment's name
GENERATORS = {name for name, backend in PRIORS.items() if backend.generator}
ENVIRONMENTS = [
    path for path in sorted((ROOT / "envs").glob("*.yaml")) if path.stem not in GENERATORS
]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_has_the_tested_versions_of_its_extra(path):
    pip = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
    assert set(pip) <= set(CONSTRAINTS)
    extras = (EXTRAS[name] for name in (path.stem, *WITH.get(path.stem, ())))
    assert names(pip) == names(sum(extras, PROJECT["dependencies"]))


def test_a_tested_version_is_within_each_range_that_names_it():
    pins = dict(line.split("==") for line in CONSTRAINTS)
    ranges = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
    assert {wanted.name for wanted in ranges} == set(pins)
    assert [str(wanted) for wanted in ranges if pins[wanted.name] not in wanted.specifier] == []


@pytest.mark.parametrize(("package", "version"), [("torch", "2.11.0"), ("numpy", "2.2.0")])
def test_the_package_installs_beside_the_oldest_supported(package, version):
    for text in sum(EXTRAS.values(), PROJECT["dependencies"]):
        wanted = Requirement(text)
        assert wanted.name != package or Version(version) in wanted.specifier


def test_the_same_package_has_the_same_range_in_all_extras():
    ranges = set(sum(EXTRAS.values(), PROJECT["dependencies"]))
    assert len(ranges) == len(names(list(ranges)))


def test_every_rule_names_an_environment_that_exists():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    named = {line.split("/")[-1] for line in rules.splitlines() if "/envs/" in line}
    of_generators = next(name for name in named if "generate.source" in name)
    assert of_generators.endswith('.source}.yaml"')
    assert {name.rstrip('"') for name in named - {of_generators}} == {p.name for p in ENVIRONMENTS}


def test_opencv_without_a_display_is_put_back_where_face_alignment_replaces_it():
    script = (ROOT / "envs" / "face.post-deploy.sh").read_text()
    (pin,) = re.findall(r"^python -m pip .* (\S+)$", script, re.MULTILINE)
    assert pin in CONSTRAINTS
    with_face_alignment = [p for p in ENVIRONMENTS if "face-alignment==" in p.read_text()]
    assert [path.stem for path in with_face_alignment] == ["face"]


def test_both_container_recipes_install_what_make_install_does():
    docker, apptainer = (
        (ROOT / "containers" / name).read_text() for name in ("Dockerfile", "eavatar.def")
    )
    (wanted,) = re.findall(r"^EXTRAS := (.*),develop$", (ROOT / "Makefile").read_text(), re.M)
    for recipe in (docker, apptainer):
        assert re.findall(r"EXTRAS=(\S+)", recipe) == [wanted]
        assert "make -C /opt/eavatar install VENV=/opt/venv" in recipe
        (base,) = re.findall(r"^F(?:ROM|rom:) (.*)$", recipe, re.MULTILINE)
        assert base == "nvidia/cuda:13.0.1-devel-ubuntu24.04"
    copied = re.findall(r"^COPY (.*) /opt/eavatar/(?:eavatar)?$", docker, re.MULTILINE)
    assert sorted(" ".join(copied).split()) == sorted(
        re.findall(r"^    (\S+) /opt/eavatar/\1$", apptainer, re.MULTILINE)
    )


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_generator_has_an_environment_whose_every_package_is_pinned(name):
    content = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    pip = [line for line in content["dependencies"][-1]["pip"] if not line.startswith("--")]
    assert all("==" in line or re.search("@ git.*@[0-9a-f]{40}$", line) for line in pip)
    # other methods are published under the same name and class: never the package of that name
    assert not any("trellis" in line for line in pip)
