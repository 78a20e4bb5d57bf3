"""The command `run`: arguments become `RunOptions`, answers go to standard output."""

from __future__ import annotations

import argparse
import io
import sys
from typing import TextIO

from paligemma_edge.runtime.cli.device_options import (
    add_bundle,
    add_device_options,
    add_max_batch_size,
    add_max_length,
    load_options,
)
from paligemma_edge.runtime.cli.verbosity import is_quiet

_EPILOG = """\
PATHS are images, folders with all below them, globs, - for a list of files on standard input,
videos, or camera:0. Videos and cameras need: pip install 'paligemma-edge[video]'

An object is printed as its label, its confidence and its box, x0, y0, x1, y1 in pixels:
  star 0.87 [11, 86, 32, 104]

examples:
  paligemma-edge run mix.bundle "caption en" photo.jpg --stream
  paligemma-edge run mix.bundle "detect cat ; dog" photo.jpg --draw boxes.png
  paligemma-edge run mix.bundle "segment cat" photos --out cats.json --draw drawn
  paligemma-edge run mix.bundle "answer en how many cars?" 'photos/**/*.jpg' --out cars.csv
  find photos -name '*.jpg' | paligemma-edge run mix.bundle "caption en" - --json
  paligemma-edge run mix.bundle "answer en day or night?" clip.mp4 --choices "day,night"
  paligemma-edge run mix.bundle "answer en what differs?" left.jpg right.jpg --together
  paligemma-edge run mix.bundle --questions test.jsonl --out answers.jsonl

A run with --out that is interrupted or killed keeps its answers in FILE.partial; the same command
goes on from there.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = (
        "%(prog)s [options] BUNDLE PROMPT PATHS...\n"
        "       %(prog)s [options] BUNDLE --questions FILE"
    )
    parser.description = "Answer a prompt about each image, or the questions of a file."
    parser.epilog = _EPILOG
    add_bundle(parser)
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="such as 'caption en' or 'detect cat ; dog'"
    )
    parser.add_argument("paths", metavar="PATHS", nargs="*", default=[], help="images; see below")
    _add_questions(parser.add_argument_group("images and prompts"))
    _add_answers(parser.add_argument_group("answers"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_outputs(parser.add_argument_group("output"))
    group = add_device_options(parser)
    add_max_batch_size(group, "answers at a time; default: 4, or 1 for a camera or a list")
    add_max_length(group)
    parser.set_defaults(command=_run)


def _add_questions(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--also", action="append", default=[], metavar="PROMPT", help="ask this too; repeatable")
    add(
        "--questions",
        metavar="FILE",
        help='JSON Lines, {"image": "a.jpg", "prefix": "caption en"} in each, or -; "prompt" does '
        'for "prefix"',
    )
    add(
        "--images",
        metavar="DIR",
        help="folder of the images that --questions names; default: that of FILE",
    )
    add("--together", action="store_true", help="one answer about all images, not one for each")
    add(
        "--max-pixels",
        metavar="N",
        help="width x height of the largest image that is read, such as 50M; default: 268M",
    )
    add(
        "--every",
        type=float,
        metavar="SECONDS",
        help="least time between frames: of a video, default 1; of a camera, default 0, which is "
        "the newest frame whenever an answer is complete",
    )


def _add_answers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--adapter", metavar="NAME", help="answer with this adapter of the bundle; see inspect")
    tokens = "tokens of an answer at most; default: 256, or what the model can still hold"
    add("--max-new-tokens", type=int, metavar="N", help=tokens)
    add("--choices", metavar="A,B,C", help="answer with one of these, separated by commas")
    add("--regex", metavar="PATTERN", help="answer with a text that matches this")
    add(
        "--labels",
        choices=["any", "asked"],
        help="labels of detect and segment: any, the default, or only those asked for",
    )
    add("--unconstrained", action="store_true", help="let detect and segment answer any text")
    add(
        "--min-confidence",
        type=float,
        metavar="X",
        help="leave out objects of detect and segment with less confidence, 0 to 1",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--temperature", type=float, metavar="T", help="draw tokens; default: the most likely one")
    add("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; default: all")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the most likely tokens that make up this probability; default: 1",
    )
    add("--seed", type=int, metavar="N", help="the same seed gives the same answers; default: 0")


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--out", metavar="FILE", help="write .jsonl, .csv or COCO's .json; resumes if cut short")
    add(
        "--draw",
        metavar="TARGET",
        help="write images with boxes and masks: a file for one image, or a folder",
    )
    add("--overwrite", action="store_true", help="replace FILE, write over images in TARGET")
    add("--json", action="store_true", help="print an object of JSON in each line")
    add("--raw", action="store_true", help="print the model's own text, with its <loc> tokens")
    add("--stream", action="store_true", help="print the text about one image as it comes")


def _run(arguments: argparse.Namespace) -> int:
    from paligemma_edge.runtime.run.options import RunOptions

    given = vars(arguments)
    options = RunOptions(
        **{name: given[name] for name in RunOptions.__dataclass_fields__ if name in given}
        | {"choices": _split(arguments.choices), "load": load_options(arguments)}
    )
    # Only now: it imports ONNX Runtime, and a wrong option is reported without it.
    from paligemma_edge.runtime.run.job import run_images
    from paligemma_edge.runtime.system.console import Console

    return run_images(options, console=Console.standard(quiet=is_quiet()), stdin=_stdin())


def _split(choices: str | None) -> tuple[str, ...] | None:
    """The choices of "A,B,C"."""
    return None if choices is None else tuple(part.strip() for part in choices.split(","))


def _stdin() -> TextIO:
    """Standard input, for names of files of any bytes."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin
