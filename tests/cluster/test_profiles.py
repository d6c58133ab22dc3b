"""Snakemake accepts the profiles. Nothing is submitted: tests/cluster/test_slurm.py does that."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from eavatar.preflight.subjects import COLUMNS
from tests.scenes import ROOT
from tests.scenes.workflow import run


@pytest.mark.parametrize("source", ["template", "trellis"])
@pytest.mark.parametrize("executor", ["slurm", "kubernetes"])
def test_a_profile_gives_each_job_its_resources(executor: str, source: str, tmp_path: Path) -> None:
    if find_spec(f"snakemake_executor_plugin_{executor}") is None:
        pytest.skip(f"pip install -c constraints.txt '.[{executor}]'")
    for name in ("config", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    settings = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    settings["prior"] = {"generate": {"source": source}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    row = "demo,generated,,,,,tiny.yaml"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    status, printed = run(tmp_path, "--profile", f"profiles/{executor}", "-n")
    assert status == 0, printed
    resources = {
        rule: dict(word.split("=", 1) for word in words.split(", "))
        for rule, words in re.findall(
            r"^ *rule (\w+):.*?^ *resources: (.*?)$", printed, re.MULTILINE | re.DOTALL
        )
    }
    assert resources["train_splat"]["gpu"] == "1" and "gpu" not in resources["fit_face"]
    assert "gpu" not in resources["generate_prior"]  # a generator has run before it
    assert ("run_generator" in resources) == (source == "trellis")
    assert {"mem_mb", "disk_mb", "runtime"} <= set(resources["ingest"])


def test_both_profiles_have_the_same_groups_of_rules_that_there_are() -> None:
    profiles = (ROOT / f"profiles/{name}/config.yaml" for name in ("slurm", "kubernetes"))
    slurm, kubernetes = (yaml.safe_load(path.read_text())["groups"] for path in profiles)
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert slurm == kubernetes
    assert set(slurm) <= set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))
