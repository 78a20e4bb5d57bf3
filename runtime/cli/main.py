"""The command `paligemma-edge`: options in, exit code out.

`run`, `inspect`, `check`, `prepack` and `bench` need the runtime alone. The others live in `export`
and are found by name when they are called, so that a device needs none of their packages.
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

from paligemma_edge.runtime.cli import bench as bench_command
from paligemma_edge.runtime.cli import inspect as commands
from paligemma_edge.runtime.cli import prepack as prepack_command
from paligemma_edge.runtime.cli import run as run_options
from paligemma_edge.runtime.cli.device_options import add_device_options, add_plan_options
from paligemma_edge.runtime.errors import (
    MissingExtraError,
    OptionError,
    PaliGemmaError,
    PromptError,
)

EXIT_FAILED, EXIT_USAGE, EXIT_NO_SPACE, EXIT_INTERRUPTED = 1, 2, 3, 130

# Commands of the other folders: the module that has them, and what they are for.
_ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "export": ("export.cli.main", "turn a checkpoint into a bundle"),
    "quantize": ("quantize.cli", "add smaller and faster variants to a bundle"),
    "verify": ("export.cli.main", "compare a bundle with the original, stage by stage"),
    "adapter": ("export.cli.main", "add a LoRA adapter that answers can be asked for with"),
}

# Which extra brings a package, by the name that is imported.
_EXTRAS: Mapping[str, str] = {
    "onnxruntime": "cpu",
    **dict.fromkeys(("ml_dtypes", "onnx", "onnx_ir", "onnxscript", "google"), "export"),
    **dict.fromkeys(("huggingface_hub", "matplotlib", "rich", "safetensors"), "export"),
    **dict.fromkeys(("tokenizers", "torch", "transformers"), "export"),
}

_EPILOG = """\
examples:
  paligemma-edge export paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz
  paligemma-edge run mix.bundle "caption en" photo.jpg
  paligemma-edge run mix.bundle "detect cat ; dog" photo.jpg --draw boxes.png
  paligemma-edge verify mix.bundle paligemma-3b-mix-224

exit codes: 0 done, 1 failed, 2 wrong usage or option, 3 disk full, 130 interrupted
"""
_INSPECT_EPILOG = "example:\n  paligemma-edge inspect mix.bundle"
_CHECK_EPILOG = "example:\n  paligemma-edge check mix.bundle --device cpu"
_PREPACK_EPILOG = """\
examples:
  paligemma-edge prepack mix.bundle --variant cpu-fp32
  paligemma-edge prepack mix.bundle --remove
"""
_BENCH_EPILOG = """\
examples:
  paligemma-edge bench mix.bundle --variant cpu-fp32
  paligemma-edge bench mix.bundle --batch 1,4,8 --image photo.jpg
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
            # The reader of our output has gone, as `head` does; there is nobody left to tell.
            _discard_output()
            return EXIT_FAILED
        except OSError as error:
            if error.filename is not None:
                raise
            # What commands write is told of as OutputError; what has no name is standard output.
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
            f"run: pip install 'paligemma-edge[{extra}]'"
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
    plain = argparse.RawDescriptionHelpFormatter  # an example keeps its line
    run = names.add_parser("run", help="answer a prompt about images", formatter_class=plain)
    run_options.add_run(run)
    add_device_options(run)
    _add_inspect(names.add_parser("inspect", help="say what a bundle holds", formatter_class=plain))
    _add_check(
        names.add_parser("check", help="test a bundle on this device", formatter_class=plain)
    )
    _add_prepack(
        names.add_parser("prepack", help="pack the weights for this device", formatter_class=plain)
    )
    _add_bench(names.add_parser("bench", help="measure speed and memory", formatter_class=plain))
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = "Say what a bundle holds: variants, sizes, memory, origin, digests."
    parser.epilog = _INSPECT_EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    add_plan_options(parser)
    parser.set_defaults(command=commands.inspect)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check every digest and answer the bundle's golden question."
    parser.epilog = _CHECK_EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    add_device_options(parser)
    parser.set_defaults(command=commands.check)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure load time, time to the first token, steps and memory; the last line is JSON."
    )
    parser.epilog = _BENCH_EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    add_device_options(parser)
    parser.add_argument("--image", metavar="FILE", help="default: an image that is drawn")
    parser.add_argument("--prompt", metavar="TEXT", default="answer en what is this?")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="tokens of an answer")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after one warm-up")
    parser.add_argument("--batch", default="1", metavar="N,N", help="slots, such as 1,4,8")
    parser.add_argument("--adapter", metavar="NAME", help="of the bundle; see inspect")
    parser.set_defaults(command=bench_command.bench)


def _add_prepack(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Save a variant as ONNX Runtime packs it for this processor, so that nearly all of its "
        "memory is a file that processes share and the system can take back."
    )
    parser.epilog = _PREPACK_EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--variant", metavar="NAME", help="such as cpu-fp32; see inspect")
    parser.add_argument("--remove", action="store_true", help="remove what was saved")
    parser.set_defaults(command=prepack_command.prepack)


if __name__ == "__main__":
    sys.exit(main())
