"""The command line: help that teaches, and its examples."""

from __future__ import annotations

import re

import pytest

from eavatar.__main__ import PEOPLE, RULES, build_parser


def test_verbs_for_people_come_first_and_each_shows_an_example() -> None:
    page = build_parser().format_help()
    people, rules = page.split("verbs for the rules of the workflow")
    for verbs, part in ((PEOPLE, people), (RULES, rules)):
        listed = re.findall(r"^  ([a-z-]+) +[A-Z]", part, flags=re.MULTILINE)
        assert [verb.__name__.replace("_", "-") for verb in verbs] == listed


@pytest.mark.parametrize("verb", [function.__name__.replace("_", "-") for function in PEOPLE])
def test_the_examples_of_a_verb_can_be_typed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([verb, "--help"])
    examples = re.findall(rf"^  eavatar {verb}\b(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for words in examples:
        assert build_parser().parse_args([verb, *words.split()]).verb == verb
