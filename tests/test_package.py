"""The wheel: what it holds, and that its command starts away from the project's folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import eavatar
from tests.scenes import ROOT


def pip(*arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *arguments, *quiet], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built from a copy: a build leaves files beside the source."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("eavatar", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    pip("wheel", *options, str(source))
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "eavatar").rglob("*.py")}
    data = {"py.typed", "tables/published.csv", "view/page.html", "view/page.js"}
    assert held == modules | {f"eavatar/{name}" for name in data}


def test_installed_command_tells_its_version(wheel, tmp_path):
    pip("install", "--no-deps", "--target", str(tmp_path), str(wheel))
    found = subprocess.run(
        [sys.executable, str(tmp_path / "bin/eavatar"), "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == eavatar.__version__


def test_citation_and_changelog_name_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == eavatar.__version__
    assert f"## [{eavatar.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
