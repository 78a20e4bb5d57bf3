"""`optimum-cli export paligemma`: the command `paligemma-edge export` for users of optimum.

optimum imports every file of its namespace `optimum.commands.register` when it starts, whatever
the command; so this one imports little, and is installed there without an `__init__`.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    from collections.abc import Sequence


class PaliGemmaExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # untyped
    """The command, with the options of `paligemma-edge export` and the same bundle."""

    COMMAND = CommandInfo(
        name="paligemma", help="Export PaliGemma to an ONNX bundle that runs without PyTorch."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the options."""
        from paligemma_edge.export.cli.export import add_options

        # Keeps the line breaks of the examples.
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        add_options(parser)

    def run(self) -> None:
        """Export, and exit as `paligemma-edge` does."""
        from paligemma_edge.runtime.cli.main import execute, guarded

        sys.exit(guarded("export", partial(execute, self.args)))


REGISTER_COMMANDS: Sequence[object] = [(PaliGemmaExportCommand, ExportCommand)]
