"""How much a command says on standard error."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys

import pytest

from paligemma_edge.runtime.cli.main import main
from paligemma_edge.runtime.cli.verbosity import (
    add_verbosity,
    is_quiet,
    is_verbose,
    level_of,
    logging_to_stderr,
)

LOGGER = logging.getLogger("paligemma_edge")


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ([], logging.INFO),
        (["-v"], logging.DEBUG),
        (["--verbose"], logging.DEBUG),
        (["-q"], logging.WARNING),
        (["--quiet"], logging.WARNING),
    ],
)
def test_the_options_choose_the_level(given: list[str], level: int) -> None:
    parser = argparse.ArgumentParser()
    add_verbosity(parser)
    assert level_of(parser.parse_args(given)) == level


def test_what_is_logged_goes_to_standard_error_while_a_command_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    with logging_to_stderr(logging.INFO):
        LOGGER.info("the variant is %s", "cpu-\x1b[31mint8")
        LOGGER.debug("not this")
        assert not is_quiet()
        assert not is_verbose()
    assert capsys.readouterr() == ("", "paligemma-edge: the variant is cpu-\\x1b[31mint8\n")
    assert (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)) == before


def test_an_error_that_names_control_characters_shows_them_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "no\x1b]0;such\x07.bundle"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paligemma-edge: ")
    assert line.isprintable()
    assert r"no\x1b]0;such\x07.bundle" in line


def test_importing_the_library_configures_nothing() -> None:
    code = (
        "import logging, paligemma_edge.runtime.model, paligemma_edge.runtime.cli.main\n"
        "print([(n, logging.getLogger(n).handlers, logging.getLogger(n).level)"
        " for n in (None, 'paligemma_edge')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[(None, [], 30), ('paligemma_edge', [], 0)]\n"
