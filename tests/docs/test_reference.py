"""What the reference pages list is what there is."""

from __future__ import annotations

import argparse
import re

import pytest

import paligemma_edge
from paligemma_edge.runtime.cli.commands import COMMANDS, command_parser
from tests.helpers.markdown import ROOT

_CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)


def code_of(page: str) -> str:
    """All that a page of the docs has as code, in blocks and in lines."""
    return " ".join(_CODE.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))


def test_the_page_about_python_has_every_public_name() -> None:
    code = code_of("python-api.md")
    missing = [name for name in paligemma_edge.__all__ if not re.search(rf"\b{name}\b", code)]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_about_the_command_line_has_every_option(command: str) -> None:
    code, parser = code_of("cli.md"), command_parser(command)
    assert f"`{command}" in code
    flags = {flag for action in parser._actions for flag in action.option_strings}
    options = {flag for flag in flags if flag.startswith("--")} - {"--help"}
    missing = {option for option in options if not re.search(rf"{option}(?![\w-])", code)}
    assert not missing


def test_no_option_of_the_page_is_gone() -> None:
    parsers: list[argparse.ArgumentParser] = [command_parser(name) for name in COMMANDS]
    actions = [action for parser in parsers for action in parser._actions]
    known = {flag for action in actions for flag in action.option_strings} | {"--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code_of("cli.md")))
    assert not named - known
