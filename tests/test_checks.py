"""The checks: hosted CI, pre-commit and `make lint` run the same commands."""

import re

import yaml

from tests.scenes import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
CI = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
VENV = ".venv/bin/"


def commands(target: str) -> list[str]:
    """The commands of a target of the Makefile that run in the environment."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe, f"the Makefile has no target {target}"
    return [line.strip().removeprefix("$(RUN) ") for line in recipe[1].splitlines()]


def test_pre_commit_runs_the_commands_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(VENV) for hook in hooks] == commands("lint")
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_what_hosted_ci_makes_is_a_target():
    steps = [step.get("run", "") for job in CI["jobs"].values() for step in job["steps"]]
    targets = [line.split()[1] for line in steps if line.startswith("make ")]
    assert {"lint", "test", "test-oldest", "install"} == set(targets)
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)


def test_hosted_ci_runs_on_the_pythons_that_the_package_allows():
    classifiers = re.findall(r":: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    for job in ("test", "wheel"):
        assert CI["jobs"][job]["strategy"]["matrix"]["python"] == classifiers


def test_ci_by_hand_runs_lint_and_tests():
    made = re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert made == ["lint", "test"]
