"""The command `run`: arguments become `RunOptions`, answers go to standard output."""

from __future__ import annotations

import argparse
import io
import sys
from typing import TextIO

from paligemma_edge.runtime.cli.device_options import add_device_options, load_options

_EPILOG = """\
PATHS are images, folders with all below them, globs, - for a list of files on standard input,
videos, or camera:0; videos and cameras need: pip install 'paligemma-edge[video]'

examples:
  paligemma-edge run mix.bundle "caption en" photo.jpg --stream
  paligemma-edge run mix.bundle "detect cat ; dog" photo.jpg --draw boxes.png
  paligemma-edge run mix.bundle "segment cat" photos --out cats.json --draw drawn
  paligemma-edge run mix.bundle "answer en how many cars?" 'photos/**/*.jpg' --out cars.csv
  find photos -name '*.jpg' | paligemma-edge run mix.bundle "caption en" - --json
  paligemma-edge run mix.bundle "answer en day or night?" clip.mp4 --choices "day,night"
  paligemma-edge run mix.bundle "answer en what differs?" left.jpg right.jpg --together

A run with --out that is interrupted or killed keeps its answers in FILE.partial; the same command
goes on from there.
"""


def add_run(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = "Answer a prompt about each image."
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that export wrote")
    parser.add_argument("prompt", metavar="PROMPT", help="such as 'caption en' or 'detect cat'")
    parser.add_argument("paths", metavar="PATHS", nargs="+", help="images; see below")
    _add_prompts_and_answers(parser)
    _add_outputs(parser)
    add_device_options(parser)
    parser.set_defaults(command=_run)


def _add_prompts_and_answers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--also", action="append", default=[], metavar="PROMPT", help="ask this too; repeatable")
    add("--together", action="store_true", help="one answer about all images, not one for each")
    add("--every", type=float, metavar="SECONDS", help="between frames of a video; default: 1")
    add(
        "--slots",
        type=int,
        metavar="N",
        help="answers at a time; default: 4; 1 for a camera or a list",
    )
    tokens = "tokens of an answer at most; default: 256, or what the model still holds"
    add("--adapter", metavar="NAME", help="answer with this adapter of the bundle; see inspect")
    add("--max-new-tokens", type=int, metavar="N", help=tokens)
    add("--choices", metavar="A,B,C", help="answer with one of these, separated by commas")
    add("--regex", metavar="PATTERN", help="answer with what matches this")
    add(
        "--any-label",
        action="store_true",
        help="let objects have labels that the prompt does not name",
    )
    add("--no-grammar", action="store_true", help="let detect and segment say anything")
    add("--temperature", type=float, metavar="T", help="sample, not greedy")
    add("--top-k", type=int, default=0, metavar="K")
    add("--top-p", type=float, default=1.0, metavar="P")
    add("--seed", type=int, default=0)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", metavar="FILE", help="write .jsonl, .csv or COCO's .json; resumes if cut short")
    add("--draw", metavar="TARGET", help="write images with boxes and masks: a file, or a folder")
    add("--overwrite", action="store_true", help="replace a file, fill a folder anew")
    add("--json", action="store_true", help="print one object a line")
    add("--stream", action="store_true", help="print the text of one image as it comes")


def _run(arguments: argparse.Namespace) -> int:
    from paligemma_edge.runtime.run.options import RunOptions

    given = vars(arguments)
    options = RunOptions(
        **{name: given[name] for name in RunOptions.__dataclass_fields__ if name in given}
        | {"choices": _split(arguments.choices), "load": load_options(arguments)}
    )
    # Only now: it imports ONNX Runtime, and a wrong option is reported without it.
    from paligemma_edge.runtime.run.job import run_images

    return run_images(options, stdin=_stdin())


def _split(choices: str | None) -> tuple[str, ...] | None:
    """The choices of "A,B,C"."""
    return None if choices is None else tuple(part.strip() for part in choices.split(","))


def _stdin() -> TextIO:
    """Standard input, for names of files of any bytes."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin
