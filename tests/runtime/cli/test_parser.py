"""What the command line does with what it does not know."""

from __future__ import annotations

import pytest

from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.cli.commands import COMMANDS, command_parser, whole_parser
from paligemma_edge.runtime.cli.exit_codes import EXIT_FAILED, EXIT_USAGE

Captured = pytest.CaptureFixture[str]


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == EXIT_USAGE


def test_the_bare_program_prints_its_help(capsys: Captured) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for name in COMMANDS:
        assert f"\n  {name} " in shown.out, name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bare_command_prints_its_help_and_what_is_missing(name: str, capsys: Captured) -> None:
    refused(name)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"usage: paligemma-edge {name} ")
    assert "\noptions:\n" in shown.err
    last = shown.err.splitlines()[-1]
    assert last.startswith("paligemma-edge: the following arguments are required: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rum",), "there is no command rum; did you mean run?"),
        (("frobnicate", "x"), "there is no command frobnicate"),
        (("-x",), "there is no option -x"),
        (("check", "b", "--treads", "2"), "there is no option --treads; did you mean --threads?"),
        (("check", "b", "--thread=2"), "there is no option --thread; did you mean --threads?"),
        (("quantize", "b", "r", "--calibration", "d"), "there is no option --calibration; did"),
        (("check", "b", "c", "d"), "unexpected argument: c d"),
        (("check", "b", "--threads", "four"), "argument --threads: invalid int value: 'four'"),
        (("export", "c", "b", "--note", "x", "--note", "y"), "--note is given twice; give it once"),
        (("bench", "b", "--threads=1", "--threads", "1"), "--threads is given twice; give it once"),
        (("check", "b", "-q", "-v"), "argument -v/--verbose: not allowed with argument -q"),
    ],
)
def test_a_mistake_is_named_below_a_short_usage(
    arguments: tuple[str, ...], message: str, capsys: Captured
) -> None:
    refused(*arguments)
    usage, wrong, see = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: paligemma-edge ")
    assert wrong.startswith(f"paligemma-edge: {message}")
    assert see.endswith("--help")


def test_options_are_written_in_full() -> None:
    with pytest.raises(SystemExit):
        command_parser("check").parse(["b", "--var", "cpu-fp32"])


def test_options_may_stand_anywhere() -> None:
    parsed = command_parser("run").parse(
        ["--json", "b", "-q", "caption en", "--also", "ocr", "a.png", "--stream", "b.png"]
    )
    assert (parsed.bundle, parsed.prompt, parsed.paths) == ("b", "caption en", ["a.png", "b.png"])
    assert (parsed.json, parsed.quiet, parsed.stream, parsed.also) == (True, True, True, ["ocr"])
    parsed = command_parser("run").parse(["b", "--questions", "q.jsonl"])
    assert (parsed.prompt, parsed.paths, parsed.questions) == (None, [], "q.jsonl")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained_in_lines_that_fit(
    name: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = command_parser(name)
    for action in parser._actions:
        assert action.help, f"{name} {action.option_strings or action.dest}"
    assert parser.usage is not None
    assert parser.description is not None
    assert max(map(len, parser.format_help().splitlines())) <= 105


def test_the_whole_parser_knows_the_options_of_every_command() -> None:
    parsed = whole_parser().parse_args(["run", "b", "caption en", "a.png", "--min-confidence", "1"])
    assert parsed.min_confidence == 1


def test_the_traceback_of_an_error_is_there_for_who_asks(capsys: Captured) -> None:
    assert cli.main(["inspect", "no.bundle"]) == EXIT_FAILED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(["inspect", "no.bundle", "--verbose"]) == EXIT_FAILED
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.splitlines()[-1].startswith("paligemma-edge: bundle no.bundle does not exist")
