"""The parser of one command: a short usage, no abbreviations, and help for what was mistyped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from paligemma_edge.runtime.cli.exit_codes import EXIT_USAGE
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.suggestion import suggestion
from paligemma_edge.runtime.system.console import Console

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_GIVEN = "options that were given"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and the texts of options begin in one column."""

    def __init__(self, prog: str, **more: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(prog, max_help_position=28, **more)


class _Once(argparse.Action):
    """Stores a value; a second one would silently take the place of the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        given: set[str] = vars(namespace).setdefault(_GIVEN, set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is given twice; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """Help keeps its lines, and options are written in full, so that a new one breaks no script."""

    def __init__(self, *, prog: str) -> None:
        super().__init__(
            prog=prog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self._positionals.title = "arguments"
        for group in (self, self._positionals, self._optionals):
            group.register("action", None, _Once)
            group.register("action", "store", _Once)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options, which may stand between the arguments; exits with 2 where one is wrong."""
        if not arguments:
            self.print_help(sys.stderr)
            self.usage = argparse.SUPPRESS  # the help has said it
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            self.refuse(unknown)
        vars(options).pop(_GIVEN, None)
        return options

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit with 2."""
        usage = "" if self.usage == argparse.SUPPRESS else self.format_usage()
        see = f"\nsee: {self.prog} --help" if usage else ""
        self.exit(EXIT_USAGE, f"{usage}paligemma-edge: {short_line(message)}{see}\n")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Help that was asked for is a result: OutputError where it cannot be written."""
        if file is sys.stdout:
            Console.standard().exact(message)
        else:
            super()._print_message(message, file)

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """Say which of the arguments that were left over is unknown, and exit with 2."""
        options = [argument for argument in arguments if argument.startswith("-")]
        if not options:
            self.error(f"unexpected argument: {' '.join(arguments)}")
        given = options[0].partition("=")[0]
        self.error(f"there is no option {given}{suggestion(given, self._option_string_actions)}")
