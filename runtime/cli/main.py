"""The command `paligemma-edge`: arguments in, exit code out.

Knows what ends a command: its errors, signals, and streams that cannot be written. Knows nothing
of what a command does.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from paligemma_edge.runtime.cli.commands import COMMANDS, command_parser, program_parser
from paligemma_edge.runtime.cli.exit_codes import EXIT_FAILED, EXIT_NO_SPACE, EXIT_USAGE
from paligemma_edge.runtime.cli.paths import has_relative_paths, working_directory
from paligemma_edge.runtime.cli.signals import interruptible
from paligemma_edge.runtime.cli.verbosity import level_of, log_traceback, logging_to_stderr
from paligemma_edge.runtime.errors import (
    MissingExtraError,
    OptionError,
    PaliGemmaError,
    PromptError,
)
from paligemma_edge.runtime.suggestion import suggestion
from paligemma_edge.runtime.system import streams
from paligemma_edge.runtime.system.console import Console

# Which extra brings a package, by the name that is imported.
_EXTRAS: Mapping[str, str] = {
    "onnxruntime": "cpu",
    **dict.fromkeys(("ml_dtypes", "onnx", "onnx_ir", "onnxscript", "google"), "export"),
    **dict.fromkeys(("matplotlib", "rich", "safetensors", "tokenizers"), "export"),
    **dict.fromkeys(("torch", "transformers"), "verify"),
    **dict.fromkeys(("h11", "msgspec", "multipart"), "serve"),
    **dict.fromkeys(("prometheus_client", "starlette", "uvicorn"), "serve"),
    "shtab": "completion",
}
# What is best run before that: by itself pip takes gigabytes of CUDA along with torch.
_BEFORE: Mapping[str, str] = {
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu && ",
}

_NOWHERE = "the working directory is no longer there; change to another one"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code, as the help of the program lists them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded((arguments or [""])[0], partial(_dispatch, arguments))


def guarded(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command and say in a line what stopped it; exit codes as of `main`."""
    _write_any_text()
    console = Console.standard()
    try:
        with interruptible(sys._getframe()) as interruption:
            return _done(name, work)
    except PaliGemmaError as error:
        console.message(_text(error))
        return _exit_code(error)
    except KeyboardInterrupt as interrupt:
        writes = ("export", "quantize", "adapter", "prepack")
        kept = "; nothing half-written was left" if name in writes else ""
        kept = f"; {interrupt}" if interrupt.args else kept
        console.message(f"interrupted{kept}")
        return interruption.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; nobody is left to read a message.
        return EXIT_FAILED
    except FileNotFoundError:
        if _is_somewhere():
            raise
        console.message(_NOWHERE)
        return EXIT_FAILED
    except Exception:
        if not interruption.came:
            raise
        console.message("interrupted")  # amid code that made another error of it
        return interruption.exit_code
    finally:
        _let_go(console)


def _let_go(console: Console) -> None:
    """Let nothing fail again when the interpreter ends."""
    try:
        console.flush()
    except (PaliGemmaError, BrokenPipeError):
        streams.discard(console.out)


def _is_somewhere() -> bool:
    """Whether the working directory is there."""
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _write_any_text() -> None:
    """Let no name of a file and no answer fail on what the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments:
        program_parser().print_help()
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        return _no_command(arguments)
    parser = command_parser(name)
    options = parser.parse(arguments[1:])
    with working_directory(needed=has_relative_paths(parser, options)):
        return execute(options)


def execute(options: argparse.Namespace) -> int:
    """Run the command of parsed options; its exit code."""
    command: Callable[[argparse.Namespace], int] = options.command
    with logging_to_stderr(level_of(options)):
        try:
            return command(options)
        except PaliGemmaError:
            log_traceback()
            raise


def _no_command(arguments: Sequence[str]) -> NoReturn:
    """What is no command: `--help`, `--version`, or a mistake."""
    parser = program_parser()
    if arguments[0].startswith("-"):
        parser.parse_known_args(arguments[:1])  # --help and --version end here
        parser.refuse(arguments[:1])
    parser.error(f"there is no command {arguments[0]}{suggestion(arguments[0], COMMANDS)}")


def _done(name: str, work: Callable[[], int]) -> int:
    try:
        code = work()
    except SystemExit:  # of --help
        Console.standard().flush()
        raise
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(
            f"`{name}` needs the package {error.name}, which is not installed; "
            f"run: {_BEFORE.get(error.name or '', '')}pip install 'paligemma-edge[{extra}]'"
        ) from None
    Console.standard().flush()  # here, where a reader that has gone is not an accident
    return code


def _exit_code(error: PaliGemmaError) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return EXIT_NO_SPACE
    return EXIT_USAGE if isinstance(error, OptionError | PromptError) else EXIT_FAILED


def _text(error: PaliGemmaError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
