"""The command `completion`: what a shell needs to complete commands and options, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from paligemma_edge.runtime.cli.paths import FILES, FOLDERS
from paligemma_edge.runtime.system.console import Console

SHELLS = ("bash", "zsh")

_EPILOG = """\
The script is complete in itself: make it again after an update of paligemma-edge.
It needs: pip install 'paligemma-edge[completion]'

examples:
  paligemma-edge completion bash > ~/.local/share/bash-completion/completions/paligemma-edge
  paligemma-edge completion zsh > "${fpath[1]}/_paligemma-edge"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = "Print a script that lets a shell complete commands, options and files."
    parser.epilog = _EPILOG
    parser.usage = "%(prog)s [options] SHELL"
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(command=_complete)


def _complete(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from paligemma_edge.runtime.cli.commands import whole_parser

    parser = whole_parser()
    _complete_paths(parser, shtab.FILE, shtab.DIRECTORY)
    Console.standard().exact(shtab.complete(parser, shell=options.shell) + "\n")
    return 0


def _complete_paths(
    parser: argparse.ArgumentParser, file: Mapping[str, object], folder: Mapping[str, object]
) -> None:
    """Tell shtab which arguments are files and folders: it reads that from their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, file, folder)
        elif action.metavar in FOLDERS | FILES:
            kind = folder if action.metavar in FOLDERS else file
            action.complete = kind  # type: ignore[attr-defined]
