"""The command `paligemma-edge`: arguments in, exit code out.

`run`, `inspect`, `check`, `prepack` and `bench` need the runtime alone. The others live in `export`
and are imported by name when they are called, so that a device needs none of their packages.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

from paligemma_edge.runtime.cli.bench import add_bench
from paligemma_edge.runtime.cli.check import add_check
from paligemma_edge.runtime.cli.inspect import add_inspect
from paligemma_edge.runtime.cli.prepack import add_prepack
from paligemma_edge.runtime.cli.run import add_run
from paligemma_edge.runtime.errors import (
    MissingExtraError,
    OptionError,
    PaliGemmaError,
    PromptError,
)

EXIT_FAILED, EXIT_USAGE, EXIT_NO_SPACE, EXIT_INTERRUPTED = 1, 2, 3, 130

# Commands of the runtime alone: what they are for, and what describes them to a parser.
_COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("answer a prompt about images", add_run),
    "inspect": ("say what a bundle holds", add_inspect),
    "check": ("test a bundle on this device", add_check),
    "prepack": ("pack the weights for this device", add_prepack),
    "bench": ("measure speed and memory", add_bench),
}

# Commands of the other folders: the module that has them, and what they are for.
_ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "export": ("export.cli.main", "turn a checkpoint into a bundle"),
    "quantize": ("quantize.cli", "add smaller and faster variants to a bundle"),
    "verify": ("export.cli.main", "compare a bundle with the original, stage by stage"),
    "adapter": ("export.cli.main", "add a LoRA adapter, to be switched on for each answer"),
}

# Which extra brings a package, by the name that is imported.
_EXTRAS: Mapping[str, str] = {
    "onnxruntime": "cpu",
    **dict.fromkeys(("ml_dtypes", "onnx", "onnx_ir", "onnxscript", "google"), "export"),
    **dict.fromkeys(("huggingface_hub", "matplotlib", "rich", "safetensors"), "export"),
    "tokenizers": "export",
    **dict.fromkeys(("torch", "transformers"), "verify"),
}
# What is best run before that: by itself pip takes gigabytes of CUDA along with torch.
_BEFORE: Mapping[str, str] = {
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu && ",
}

_EPILOG = """\
examples:
  paligemma-edge export paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz
  paligemma-edge run mix.bundle "caption en" photo.jpg
  paligemma-edge run mix.bundle "detect cat ; dog" photo.jpg --draw boxes.png
  paligemma-edge verify mix.bundle paligemma-3b-mix-224

exit codes: 0 done, 1 failed, 2 wrong usage or option, 3 disk full, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 1 failed, 2 wrong usage or option, 3 disk full, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded((arguments or [""])[0], partial(_run, arguments))


def guarded(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command and say in a line what stopped it; exit codes as of `main`."""
    _write_any_text()
    with _terminable():
        try:
            return _done(name, work)
        except PaliGemmaError as error:
            print(f"paligemma-edge: {_text(error)}", file=sys.stderr)
            return _exit_code(error)
        except KeyboardInterrupt as interrupt:
            writes = ("export", "quantize", "adapter", "prepack")
            kept = "; nothing half-written was left" if name in writes else ""
            kept = f"; {interrupt}" if interrupt.args else kept
            print(f"paligemma-edge: interrupted{kept}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has gone, as `head` does; nobody is left to read a message.
            _discard_output()
            return EXIT_FAILED
        except OSError as error:
            if error.filename is not None:
                raise
            # What commands write raises OutputError; an error without a name is standard output's.
            _discard_output()
            return _tell_output(error)


def _discard_output() -> None:
    """Let nothing fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell_output(error: OSError) -> int:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "free some space" if full else "check where it leads"
    message = f"cannot write standard output: {error.strerror}; {todo}"
    print(f"paligemma-edge: {message}", file=sys.stderr)
    return EXIT_NO_SPACE if full else EXIT_FAILED


def _write_any_text() -> None:
    """Let no name of a file and no answer fail on what the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C; Python lets the main thread alone say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in _ELSEWHERE:
        folder, _ = _ELSEWHERE[arguments[0]]
        code: int = importlib.import_module(f"paligemma_edge.{folder}").main(arguments)
        return code
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _done(name: str, work: Callable[[], int]) -> int:
    try:
        code = work()
    except SystemExit:  # of --help
        sys.stdout.flush()
        raise
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(
            f"`{name}` needs the package {error.name}, which is not installed; "
            f"run: {_BEFORE.get(error.name or '', '')}pip install 'paligemma-edge[{extra}]'"
        ) from None
    sys.stdout.flush()  # here, where a reader that has gone is not an accident
    return code


def _exit_code(error: PaliGemmaError) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return EXIT_NO_SPACE
    return EXIT_USAGE if isinstance(error, OptionError | PromptError) else EXIT_FAILED


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _text(error: PaliGemmaError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paligemma-edge",
        description="PaliGemma on a device: export once, answer on CUDA or CPU without torch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("paligemma-edge"))
    names = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, summary) in _ELSEWHERE.items():
        names.add_parser(name, help=summary, add_help=False)
    for name, (summary, add) in _COMMANDS.items():
        # An example keeps its line.
        plain = argparse.RawDescriptionHelpFormatter
        add(names.add_parser(name, help=summary, formatter_class=plain))
    return parser
