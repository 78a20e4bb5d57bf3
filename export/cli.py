"""The commands `export` and `verify`: options in, a progress bar and a table out.

The packages of the extra are imported within the commands, so that help needs none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from paligemma_edge.export.verify_samples import DEFAULT_MAX_NEW_TOKENS, read_samples
from paligemma_edge.quantize.cli import progress_bars
from paligemma_edge.quantize.recipe import load_recipe

LOSSLESS = "cpu-fp32"


def main(argv: Sequence[str]) -> int:
    """Run `export` or `verify`; argv begins with the command's name."""
    parser = argparse.ArgumentParser(prog="paligemma-edge")
    names = parser.add_subparsers(required=True)
    plain = argparse.RawDescriptionHelpFormatter  # an example keeps its line
    _add_export(names.add_parser("export", formatter_class=plain))
    _add_verify(names.add_parser("verify", formatter_class=plain))
    options = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a PaliGemma checkpoint, a directory as transformers saves it, into a bundle."
    )
    parser.epilog = (
        "examples:\n"
        "  paligemma-edge export paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz\n"
        "  paligemma-edge export paligemma-3b-mix-224 small.bundle --variant cpu-int4"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--mask-decoder", metavar="NPZ", help="PaliGemma's vae-oid.npz, for <seg> tokens"
    )
    parser.add_argument(
        "--variant",
        metavar="RECIPE",
        action="append",
        help=f"{LOSSLESS} (the default), or a recipe as `quantize` takes it; may be repeated",
    )
    parser.add_argument(
        "--calibrate", metavar="DIR", type=Path, help="as in `quantize`; default: sample pictures"
    )
    parser.add_argument("--no-calibration", action="store_true", help="as in `quantize`")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.set_defaults(command=_export)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare a bundle with its checkpoint in transformers (float32, eager attention),\n"
        "stage by stage. Writes the figures into the bundle; exits with 1 past a tolerance."
    )
    parser.epilog = "example:\n  paligemma-edge verify mix.bundle paligemma-3b-mix-224"
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--variant", metavar="NAME", help="default: the first one for this device")
    parser.add_argument(
        "--samples",
        metavar="DIR",
        type=Path,
        help="pictures with a prompts.json; default: three pictures that are drawn",
    )
    parser.add_argument("--max-new-tokens", type=int, default=DEFAULT_MAX_NEW_TOKENS, metavar="N")
    parser.set_defaults(command=_verify)


def _export(options: argparse.Namespace) -> int:
    from paligemma_edge.export.exporter import export
    from paligemma_edge.quantize.questions import read_questions, sample_questions

    named = options.variant or [LOSSLESS]
    variants = [None if name == LOSSLESS else load_recipe(name) for name in named]
    folder = options.calibrate
    questions = sample_questions() if folder is None else read_questions(folder)
    with progress_bars() as report:
        manifest = export(
            options.checkpoint,
            options.bundle,
            mask_decoder=options.mask_decoder,
            variants=variants,
            questions=None if options.no_calibration else questions,
            overwrite=options.overwrite,
            progress=report,
        )
    size = sum(record.bytes for record in manifest.files.values())
    names = ", ".join(manifest.variants)
    print(f"{options.bundle}: {names}, {len(manifest.files)} files, {size / 1e6:,.1f} MB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from paligemma_edge.export.parity import render
    from paligemma_edge.export.verify import verify

    console = Console(stderr=True)
    samples = None if options.samples is None else read_samples(options.samples)
    with console.status("reading the original") as status:
        report = verify(
            options.bundle,
            options.checkpoint,
            variant=options.variant,
            samples=samples,
            max_new_tokens=options.max_new_tokens,
            progress=status.update,
        )
    Console().print(render(report))
    return 0 if report.passed else 1
