"""Shell lines of the docs: run where that is cheap, else checked as far as a parser can."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from paligemma_edge.runtime.cli.commands import command_parser
from paligemma_edge.runtime.cli.main import main
from tests.helpers.markdown import ROOT

PROGRAM = "paligemma-edge"
# Seconds at most, on the sample model; the others are run by tests of their own.
CHEAP = ("run", "inspect", "check", "bench", "prepack", "--help", "--version")
LISTS = ("find", "ls")  # they print what a command reads
HARMLESS = ("hf", "optimum-cli", "source")  # not ours to check
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_EXTRAS = re.compile(r"(?:\.|paligemma-edge)\[(.+)\]")


def pipelines(code: str) -> list[list[list[str]]]:
    """The lines of a block, each as the commands that read from one another, those as words."""
    lines = code.replace("\\\n", " ").splitlines()
    return [found for line in lines if (found := _commands(line))]


def run_line(pipeline: Sequence[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line in this process, in the current folder, or check what is too dear to run."""
    said = ""
    for command in pipeline:
        if command[0] == PROGRAM and command[1] in CHEAP:
            monkeypatch.setattr(sys, "stdin", io.StringIO(said))
            assert _exit_code(command[1:]) == 0
        elif command[0] == "curl":
            _fetch(command)
        elif command[0] in LISTS:
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        else:
            check_command(command)


def check_line(pipeline: Sequence[Sequence[str]]) -> None:
    """Check a line without running it."""
    for command in pipeline:
        if command[0] not in (*LISTS, "curl"):
            check_command(command)


def check_command(command: Sequence[str]) -> None:
    """Fail where a command names an option, a target, a module or an extra that is not there."""
    program, rest = Path(command[0]).name, command[1:]
    if program == PROGRAM:
        assert command_parser(rest[0]).parse(rest[1:])
    elif program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", targets, re.MULTILINE) for target in rest)
    elif program.startswith("python"):
        _check_python(rest)
    elif program == "pip":
        _check_pip(rest)
    else:
        assert program in HARMLESS, f"{program}: say in shell_lines how it is checked"


def _commands(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word == ">":  # where output goes
            break
        if word == "|":
            found.append([])
        elif found[-1] or not _ASSIGNMENT.fullmatch(word):
            found[-1].append(word)
    return [command for command in found if command]


def _fetch(command: Sequence[str]) -> None:
    """Ask a server; it is a mistake of the page where the answer is an error."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    subprocess.run([*command, "--silent", "--show-error", "--fail-with-body"], check=True)


def _exit_code(arguments: Sequence[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as ended:  # of --help, and of options that no parser takes
        return ended.code


def _check_python(arguments: Sequence[str]) -> None:
    if arguments[0] == "-m":
        assert find_spec(arguments[1]) is not None
        if arguments[1] == "pip":
            _check_pip(arguments[2:])
    else:
        assert (ROOT / arguments[0]).is_file()


def _check_pip(arguments: Sequence[str]) -> None:
    assert arguments[0] in ("install", "download")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for argument in arguments[1:]:
        if extras := _EXTRAS.fullmatch(argument):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), argument
