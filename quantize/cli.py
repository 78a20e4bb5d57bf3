"""The command `quantize`: options in, a progress bar, a table and a plot out.

The packages of the extra are imported within the command, so that help needs none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from paligemma_edge.quantize.progress import Progress
from paligemma_edge.quantize.recipes.recipe import load_recipe, shipped


def main(argv: Sequence[str]) -> int:
    """Run `quantize`; argv begins with the command's name."""
    parser = argparse.ArgumentParser(prog="paligemma-edge")
    names = parser.add_subparsers(required=True)
    plain = argparse.RawDescriptionHelpFormatter  # an example keeps its line
    _add_quantize(names.add_parser("quantize", formatter_class=plain))
    options = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def recipes_text() -> str:
    """The shipped recipes, a line each."""
    return "recipes:\n" + "\n".join(f"  {name:<10} {about}" for name, about in shipped().items())


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Add smaller and faster variants to a bundle, each with a report of how near its answers\n"
        "are to those of the lossless variant."
    )
    parser.epilog = (
        f"{recipes_text()}\n  or the path of a recipe file of your own, such as cpu-mine.toml\n\n"
        "examples:\n"
        "  paligemma-edge quantize mix.bundle cpu-int4 cpu-fast\n"
        "  paligemma-edge quantize mix.bundle cpu-int4 --calibrate photos --min-agreement 0.99\n"
        "  paligemma-edge quantize mix.bundle cpu-int4 --no-calibration --no-report"
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("recipes", metavar="RECIPE", nargs="+")
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        type=Path,
        help="images, with a prompts.json or without; default: the sample images",
    )
    parser.add_argument(
        "--no-calibration",
        action="store_true",
        help="round to the nearest code: quick, in little memory, less exact",
    )
    parser.add_argument("--no-report", action="store_true", help="do not run the two variants")
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="find the smallest variant that gives this share of the answers unchanged",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a variant")
    parser.add_argument(
        "--default",
        action="store_true",
        help="mark the variant as the one that is used where none is named",
    )
    parser.set_defaults(command=_quantize)


def _quantize(options: argparse.Namespace) -> int:
    from rich.console import Console

    from paligemma_edge.quantize.fidelity.questions import read_questions, sample_questions
    from paligemma_edge.quantize.fidelity.report_table import render_reports
    from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
    from paligemma_edge.runtime.bundle.fidelity import plot_name

    recipes = [load_recipe(name) for name in options.recipes]
    note = partial(Console(stderr=True).out, highlight=False)  # a file's name is not markup
    if options.calibrate is None:
        questions = sample_questions()
    else:
        questions = read_questions(options.calibrate, note=note)
    settings = QuantizeOptions(
        questions=tuple(questions),
        calibrate=not options.no_calibration,
        report=not options.no_report,
        min_agreement=options.min_agreement,
        overwrite=options.overwrite,
        default=options.default,
    )
    with progress_bars() as progress:
        reports = quantize(options.bundle, recipes, settings, progress, note)
    if reports:
        Console().print(render_reports(reports))
    for report in reports:
        if report.layers:
            print(f"errors by layer: {Path(options.bundle) / plot_name(report.variant)}")
    names = ", ".join(recipe.name for recipe in recipes)
    print(f"{options.bundle}: added {names}; `paligemma-edge inspect` lists its variants")
    return 0


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each stage of long work, on a terminal; nothing in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    hidden = not console.is_terminal  # a log would get an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report
