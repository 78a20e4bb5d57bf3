"""The commands of `paligemma-edge`, by name: where each is, and the parsers of one and of all.

A command is imported when it is called, so that a device needs none of the packages of `export`
and `quantize`, and help needs none but Python.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from paligemma_edge.runtime.cli.parser import CommandParser
from paligemma_edge.runtime.cli.verbosity import add_verbosity

PROGRAM = "paligemma-edge"

_DESCRIPTION = "PaliGemma on a device: export once, answer on CUDA or CPU without torch."
_EPILOG = """\
examples:
  paligemma-edge export paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz
  paligemma-edge run mix.bundle "caption en" photo.jpg
  paligemma-edge run mix.bundle "detect cat ; dog" photo.jpg --draw boxes.png
  paligemma-edge COMMAND --help

exit codes: 0 done, 1 failed, 2 wrong usage or option, 3 disk full, 130 interrupted,
143 terminated
"""


@dataclass(frozen=True)
class Command:
    """What a command is for, and the module whose `add_options` describes it to a parser."""

    summary: str
    module: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Describe the command to a parser."""
        importlib.import_module(f"paligemma_edge.{self.module}").add_options(parser)
        add_verbosity(parser)


# In the order in which most people need them.
COMMANDS: Mapping[str, Command] = {
    "run": Command("answer a prompt about each image", "runtime.cli.run"),
    "serve": Command("answer over HTTP, with a page", "runtime.cli.serve"),
    "inspect": Command("say what a bundle holds", "runtime.cli.inspect"),
    "check": Command("test a bundle on this device", "runtime.cli.check"),
    "bench": Command("measure speed and memory", "runtime.cli.bench"),
    "prepack": Command("pack the weights for this device", "runtime.cli.prepack"),
    "export": Command("turn a checkpoint into a bundle", "export.cli.export"),
    "quantize": Command("add smaller and faster variants to a bundle", "quantize.cli"),
    "adapter": Command(
        "add a LoRA adapter, to be switched on for each answer", "export.cli.adapter"
    ),
    "verify": Command("compare a bundle with the original, stage by stage", "export.cli.verify"),
    "completion": Command("complete commands and options in a shell", "runtime.cli.completion"),
}


def command_parser(name: str) -> CommandParser:
    """The parser of one command."""
    parser = CommandParser(prog=f"{PROGRAM} {name}")
    COMMANDS[name].add_options(parser)
    return parser


def program_parser() -> CommandParser:
    """The program's parser, which lists the commands and parses none of them."""
    parser = CommandParser(prog=PROGRAM)
    parser.usage = "%(prog)s COMMAND [options] ..."
    commands = (f"  {name:<12}{command.summary}" for name, command in COMMANDS.items())
    parser.description = "\n".join((f"{_DESCRIPTION}\n\ncommands:", *commands))
    parser.epilog = _EPILOG
    parser.add_argument("--version", action="version", version=f"%(prog)s {version(PROGRAM)}")
    return parser


def whole_parser() -> CommandParser:
    """The program's parser with the options of every command."""
    parser = program_parser()
    names = parser.add_subparsers()
    for name, command in COMMANDS.items():
        command.add_options(names.add_parser(name, prog=f"{PROGRAM} {name}", help=command.summary))
    return parser
