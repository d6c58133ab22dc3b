"""What the Markdown pages name exists: files, headings, settings, verbs and benchmarks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_args

from eavatar.__main__ import build_parser
from tests.scenes import CONFIG, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
FOLDERS = "benchmarks|config|containers|docs|eavatar|envs|profiles|tests|workflow"
COMMAND = re.compile(r"^ *(?:python -m )?(eavatar|snakemake) ((?:.*\\\n)*[^#\n]*)", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code(page: Path) -> str:
    return "".join(re.findall(r"^ *```.*?^ *```", page.read_text(), re.DOTALL | re.MULTILINE))


def prose(page: Path) -> str:
    """Without blocks of code, whose lines may look like headings."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words after the program's name, of each of its commands."""
    for name, words in COMMAND.findall(code(page)):
        if name == program:
            yield shlex.split(words.replace("\\\n", " "))


def settings(content: object, name: str = "") -> Iterator[str]:
    """The dotted names of all blocks and keys."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield name + key
            yield from settings(value, f"{name}{key}.")


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for file, anchor in LINK.findall(prose(page)):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {file}#{anchor}"


@every_page
def test_named_settings_and_files_exist(page: Path) -> None:
    known = set(settings(yaml.safe_load((CONFIG / "config.yaml").read_text())))
    blocks = "|".join({name.split(".")[0] for name in known if "." in name})
    named = re.findall(rf"`((?:{blocks})\.[a-z_0-9.]+)(?:: [^`]*)?`", prose(page))
    if page.name != "CHANGELOG.md":  # which also says what settings were called
        assert {name for name in named if not name.endswith(".yaml")} <= known
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*|[\w/]+/\w+\.py)`", prose(page)):
        assert (ROOT / path).exists() or (ROOT / "eavatar" / path).exists(), path
    for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text()):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


@every_page
def test_commands_have_known_verbs_and_flags(page: Path) -> None:
    for words in commands(page, "eavatar"):
        build_parser().parse_args(words)


@every_page
def test_targets_of_snakemake_are_not_taken_for_files_of_settings(page: Path) -> None:
    """``--configfile`` takes all words up to the next flag or ``--``."""
    for words in commands(page, "snakemake"):
        given = "profiles/mine" in words  # a copy that the user makes
        options = parse_args(["--profile", "profiles/slurm", *words[2:]] if given else words)[1]
        assert all((ROOT / path).is_file() for path in options.configfile or ()), words
