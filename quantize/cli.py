"""The command `quantize`: options in, a progress bar, a table and a plot out.

The packages of the extra are imported within the command, so that help needs none of them.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from paligemma_edge.quantize.recipes.recipe import load_recipe, shipped
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.cli.table import rendered
from paligemma_edge.runtime.errors import PaliGemmaError
from paligemma_edge.runtime.system.console import Console

_LOGGER = logging.getLogger("paligemma_edge")


def recipes_text() -> str:
    """The shipped recipes, a line each."""
    return "recipes:\n" + "\n".join(f"  {name:<10} {about}" for name, about in shipped().items())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
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
    parser.usage = "%(prog)s [options] BUNDLE RECIPE [RECIPE ...]"
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `export` wrote")
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="variant to add; see below")
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        type=Path,
        help="folder of images to calibrate with and to compare the variants on, with a "
        "prompts.json or without; default: the sample images",
    )
    parser.add_argument(
        "--no-calibration",
        action="store_true",
        help="round to the nearest code: quick, in little memory, less exact",
    )
    parser.add_argument("--no-report", action="store_true", help="do not compare its answers")
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="look for the smallest variant that leaves this share of the answers unchanged, "
        "such as 0.99",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace variants of these names")
    parser.add_argument(
        "--default",
        action="store_true",
        help="mark the variant as the one that is used where none is named",
    )
    parser.set_defaults(command=_quantize)


def _quantize(options: argparse.Namespace) -> int:
    from paligemma_edge.quantize.fidelity.questions import read_questions, sample_questions
    from paligemma_edge.quantize.fidelity.report_table import render_reports
    from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
    from paligemma_edge.runtime.bundle.fidelity import plot_name

    recipes = [load_recipe(name) for name in options.recipes]
    if options.calibrate is None:
        questions = sample_questions()
    else:
        questions = read_questions(options.calibrate, note=_note)
    settings = QuantizeOptions(
        questions=tuple(questions),
        calibrate=not options.no_calibration,
        report=not options.no_report,
        min_agreement=options.min_agreement,
        overwrite=options.overwrite,
        default=options.default,
    )
    with shown_progress() as progress:
        reports = quantize(options.bundle, recipes, settings, progress, _note)
    console = Console.standard()
    with console.optional():
        if reports:
            console.exact(rendered(render_reports(reports)))
    for report in reports:
        if report.layers:
            plot = Path(options.bundle) / plot_name(report.variant)
            console.summary(f"errors by layer: {plot}")
    names = ", ".join(recipe.name for recipe in recipes)
    console.summary(f"{options.bundle}: added {names}; {_used_here(Path(options.bundle))}")
    return 0


def _note(text: str) -> None:
    _LOGGER.warning("%s", text)


def _used_here(bundle: Path) -> str:
    """Which variant the bundle is opened with from now on, where none is named."""
    from paligemma_edge.runtime.bundle.bundle import Bundle
    from paligemma_edge.runtime.loading.variants import choose_variant

    try:
        name = choose_variant(Bundle.open(bundle).manifest).name
    except PaliGemmaError:  # no variant is for a device of this machine
        return "`paligemma-edge inspect` lists its variants"
    return f"where no variant is named, {name} is now used here"
