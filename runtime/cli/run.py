"""The options of `run`, and which of them go together.

Knows the command line. Opens nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paligemma_edge.runtime.errors import OptionError

if TYPE_CHECKING:
    from paligemma_edge.runtime.generation.sampling import Sampling
    from paligemma_edge.runtime.grammar.base import Grammar
    from paligemma_edge.runtime.model import PaliGemma

EPILOG = """\
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
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that export wrote")
    parser.add_argument("prompt", metavar="PROMPT", help="such as 'caption en' or 'detect cat'")
    parser.add_argument("paths", metavar="PATHS", nargs="+", help="images; see below")
    _add_questions(parser)
    _add_outputs(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Check the options together, then do what they say."""
    check(options)
    from paligemma_edge.runtime.run import job as run_command

    return run_command.run(options)


def _add_questions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--also", action="append", default=[], metavar="PROMPT", help="ask this too; repeatable")
    add("--together", action="store_true", help="one answer about all images, not one for each")
    add("--every", type=float, metavar="SECONDS", help="between images of a video; default: 1")
    add(
        "--slots",
        type=int,
        metavar="N",
        help="answers at a time; default: 4; 1 for a camera or a list",
    )
    tokens = "tokens of an answer at most; default: 256, or what the model still holds"
    add("--adapter", metavar="NAME", help="answer with this adapter of the bundle; see inspect")
    add("--max-new-tokens", type=int, metavar="N", help=tokens)
    add("--choices", metavar="A,B,C", help="answer with one of these, parted by commas")
    add("--regex", metavar="PATTERN", help="answer with what matches this")
    add("--any-label", action="store_true", help="let objects have labels not asked for")
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


def check(options: argparse.Namespace) -> None:
    """Find before anything is opened what does not go together; OptionError."""
    from paligemma_edge.runtime.validation import check_count

    if options.max_new_tokens is not None:
        check_count("--max-new-tokens", options.max_new_tokens)
    if options.slots is not None:
        check_count("--slots", options.slots)
    _exclude(options, "--stream", ["--json", "--out", "--draw", "--also", "--choices"])
    _exclude(options, "--together", ["--out", "--draw", "--also", "--choices"])
    _exclude(
        options, "--choices", ["--regex", "--draw", "--temperature", "--no-grammar", "--any-label"]
    )
    _exclude(options, "--regex", ["--no-grammar", "--any-label"])
    _exclude(options, "--any-label", ["--no-grammar"])
    _check_prompts(prompts(options))
    _check_answers(options)
    sampling(options)


def open_model(options: argparse.Namespace) -> PaliGemma:
    """Open the bundle as the options say."""
    from paligemma_edge.runtime.cli.device_options import opening
    from paligemma_edge.runtime.model import PaliGemma

    return PaliGemma(options.bundle, options.device, options.variant, **opening(options))


def prompts(options: argparse.Namespace) -> list[str]:
    """All prompts, in order."""
    return [options.prompt, *options.also]


def sampling(options: argparse.Namespace) -> Sampling | None:
    """How tokens are chosen; None for the most likely ones."""
    from paligemma_edge.runtime.generation.sampling import TopSampling

    if options.temperature is None:
        if options.top_k or options.top_p != 1.0:
            raise OptionError("--top-k and --top-p choose among samples; give --temperature too")
        return None
    return TopSampling(options.temperature, options.top_k, options.top_p, options.seed)


def pattern(options: argparse.Namespace) -> Grammar | None:
    """The grammar of --regex, if it was given."""
    from paligemma_edge.runtime.grammar.regex import Regex

    return None if options.regex is None else Regex(options.regex)


def grammar(options: argparse.Namespace, images: int) -> Grammar | None:
    """What the one answer about so many images may be; boxes lie in one image."""
    from paligemma_edge.runtime.grammar.task_grammar import task_grammar
    from paligemma_edge.runtime.text.tasks import Task

    if options.regex is not None or options.no_grammar or images > 1:
        return pattern(options)
    return task_grammar(Task.of(options.prompt), any_label=options.any_label)


def choices(options: argparse.Namespace) -> tuple[str, ...] | None:
    """The closed set of answers, if one was given."""
    if options.choices is None:
        return None
    return tuple(part.strip() for part in options.choices.split(","))


def _exclude(options: argparse.Namespace, name: str, others: Sequence[str]) -> None:
    given = [other for other in others if _is_given(options, other)]
    if _is_given(options, name) and given:
        raise OptionError(f"{name} does not go with {' and '.join(given)}; leave out the one")


def _is_given(options: argparse.Namespace, name: str) -> bool:
    value = getattr(options, name.removeprefix("--").replace("-", "_"))
    return value is not None and value is not False and value != []


def _check_prompts(prompts: Sequence[str]) -> None:
    for prompt in prompts:
        if prompts.count(prompt) > 1:
            raise OptionError(f"the prompt {prompt!r} is given twice; ask it once")


def _check_answers(options: argparse.Namespace) -> None:
    """Build what answers may be; what a tokenizer must see is checked when the bundle is open."""
    from paligemma_edge.runtime.grammar.choices import Choices
    from paligemma_edge.runtime.text.tasks import Task

    tasks = [Task.of(prompt) for prompt in prompts(options)]
    pattern(options)
    if (closed := choices(options)) is None:
        return
    Choices(closed)
    for task in tasks:
        if task.labels is not None:
            raise OptionError(
                f"--choices does not go with {task.prompt!r}, whose answers are boxes; "
                "ask for words"
            )
