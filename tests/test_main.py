"""The command line: help that teaches, and its examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from eavatar.__main__ import PEOPLE, RULES, build_parser, whole_number
from eavatar.settings import SEED_LIMIT

ROOT = Path(__file__).parents[1]


def test_verbs_for_people_come_first_and_each_shows_an_example() -> None:
    page = build_parser().format_help()
    people, rules = page.split("verbs for the rules of the workflow")
    for verbs, part in ((PEOPLE, people), (RULES, rules)):
        listed = re.findall(r"^  ([a-z-]+) +[A-Z]", part, flags=re.MULTILINE)
        assert [verb.__name__.replace("_", "-") for verb in verbs] == listed


def test_the_readme_lists_the_verbs_for_people_in_the_order_of_the_help() -> None:
    tools = (ROOT / "README.md").read_text().split("### All tools")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", tools, flags=re.MULTILINE)
    assert [verb.__name__.replace("_", "-") for verb in PEOPLE] == listed


@pytest.mark.parametrize("verb", [function.__name__.replace("_", "-") for function in PEOPLE])
def test_the_examples_of_a_verb_can_be_typed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([verb, "--help"])
    examples = re.findall(rf"^  eavatar {verb}\b(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for words in examples:
        assert build_parser().parse_args([verb, *words.split()]).verb == verb


@pytest.mark.parametrize(
    ("verb", "flag", "word", "said"),
    [
        ("align-prior", "--seed", "-1", "-1 must be at least 0 and below 9223372036854775808"),
        ("train-sdf", "--seed", str(2**63), f"{2**63} must be at least 0 and below {2**63}"),
        ("train-splat", "--seed", "one", "invalid int value: 'one'"),
        ("floors", "--image-size", "31", "31 must be at least 32"),
        ("floors", "--image-size", "nan", "invalid int value: 'nan'"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(
    verb: str, flag: str, word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args([verb, flag, word])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"eavatar {verb}: error: argument {flag}: {said}"


def test_the_limits_of_a_seed_are_seeds_for_numpy_and_torch() -> None:
    for seed in (0, SEED_LIMIT - 1):
        assert whole_number(0, SEED_LIMIT)(str(seed)) == seed
        np.random.default_rng([seed, 1])
        torch.Generator().manual_seed(seed)
