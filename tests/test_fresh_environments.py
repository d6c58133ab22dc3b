"""Each rule in an environment of its own that holds what its file in envs/ pins and nothing else.

conda is not at hand everywhere, so the environments are virtual ones of the running Python with the
files' PyPI packages; what conda itself adds, Python, pip and git, is taken from here. They take
gigabytes and minutes: ``make test-environments`` runs this.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from eavatar.preflight.subjects import COLUMNS
from tests.scenes import ROOT
from tests.test_environments import ENVIRONMENTS

FOLDER = os.environ.get("EAVATAR_ENVIRONMENTS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="gigabytes; run make test-environments")

NAMES = [path.stem for path in ENVIRONMENTS]
# In place of `python`: which environment a verb's rule has, and a note that it was used.
SHIM = """#!/bin/sh
case "$1 $2 $3" in
{cases}
esac
exec {python} "$@"
"""


def rules() -> dict[str, str]:
    """Rule to environment, of the rules that run a verb in an environment of ours."""
    text = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    found = {}
    for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]:
        environment = re.search(r'/envs/(\w+)\.yaml"', rule)
        verb = re.search(r"python -m eavatar ([\w-]+)", rule)
        if environment and verb:
            found[verb[1]] = environment[1]
    return found


def python_of(name: str) -> Path:
    return Path(str(FOLDER), name, "bin", "python")


@pytest.fixture(scope="module")
def uv() -> str:
    """A program that finds and links packages faster than pip."""
    place = Path(str(FOLDER), "uv")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "-q", "uv"], check=True)
    return str(place / "bin" / "uv")


@pytest.fixture(scope="module")
def installed(uv: str) -> None:
    """All environments, each anew, as its file says; then what a script beside it adds."""
    for name in NAMES:
        content = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
        pins = content["dependencies"][-1]["pip"]
        python = python_of(name)
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True
        )
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *pins], check=True)
        script = ROOT / "envs" / f"{name}.post-deploy.sh"
        if script.exists():
            path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", str(script)], check=True, env=os.environ | {"PATH": path})


@pytest.fixture
def shim(tmp_path: Path, installed: None) -> Iterator[Path]:
    """A folder with a `python` that runs each verb in the environment of its rule."""
    used = tmp_path / "used"
    cases = "\n".join(
        f'"-m eavatar {verb}") echo {verb} >> {used}; exec {python_of(name)} "$@" ;;'
        for verb, name in rules().items()
    )
    folder = tmp_path / "shim"
    folder.mkdir()
    program = folder / "python"
    program.write_text(SHIM.format(cases=cases, python=sys.executable))
    program.chmod(0o755)
    yield folder


def call(shim: Path, folder: Path, *words: str) -> str:
    """What a call printed that found the shim first."""
    path = os.pathsep.join((str(shim), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_verb_of_a_rule_explains_itself(shim: Path, tmp_path: Path) -> None:
    for verb in rules():
        assert f"eavatar {verb}" in call(shim, tmp_path, "python", "-m", "eavatar", verb, "--help")


def test_the_tiny_subject_runs_through_all_environments(shim: Path, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    row = f"demo,generated,,,,,{ROOT / 'tests/tiny.yaml'}"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    targets = ["metrics.csv", "report.html", "tables/full/speed.json"]
    words = [f"results/demo/{target}" for target in targets]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    call(shim, tmp_path, *command, "--cores", "2", *words, "--config", "subjects=subjects.csv")
    used = set((tmp_path / "used").read_text().split())
    assert {rules()[verb] for verb in used} == set(NAMES)
    apart = {"train-nerface", "train-havatar", "overview", "paper-table", "paper-figure", "reenact"}
    assert set(rules()) - used == apart | {"prepare-prior"}
