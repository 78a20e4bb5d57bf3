"""The commands `export`, `verify` and `adapter`: options in, a progress bar and a table out.

The packages of the extra are imported within the commands, so that help needs none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.cli.adapter import add_adapter_options
from paligemma_edge.export.cli.hub_options import (
    adapter_paths,
    add_hub_options,
    checkpoint_path,
    tokenizer_path,
)
from paligemma_edge.export.verify.samples import DEFAULT_MAX_NEW_TOKENS, read_samples
from paligemma_edge.quantize.cli import progress_bars
from paligemma_edge.quantize.recipes.recipe import load_recipe

LOSSLESS = "cpu-fp32"


def main(argv: Sequence[str]) -> int:
    """Run `export`, `verify` or `adapter`; argv begins with the command's name."""
    parser = argparse.ArgumentParser(prog="paligemma-edge")
    names = parser.add_subparsers(required=True)
    plain = argparse.RawDescriptionHelpFormatter  # an example keeps its line
    add_export_options(names.add_parser("export", formatter_class=plain))
    _add_verify(names.add_parser("verify", formatter_class=plain))
    add_adapter_options(names.add_parser("adapter", formatter_class=plain))
    options = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The options of `export`, and what it does."""
    parser.description = (
        "Turn a PaliGemma checkpoint into a bundle: a directory as transformers saves it or its\n"
        "name on the Hugging Face Hub, or an npz as big_vision does, whole or in parts\n"
        "(NAME.npz.part0, NAME.npz.part1, ...)."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz\n"
        "  %(prog)s google/paligemma-3b-mix-224 small.bundle --variant cpu-int4\n"
        "  %(prog)s paligemma-3b-pt-224 parts.bundle --adapter parts-lora\n"
        "  %(prog)s pt_224.f16.npz pt.bundle --tokenizer paligemma_tokenizer.model"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--mask-decoder", metavar="NPZ", help="PaliGemma's vae-oid.npz, for <seg> tokens"
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        action="append",
        help="a LoRA adapter as PEFT saves it, or its name on the Hub, merged into the weights "
        "before anything else; may be repeated, and counts in that order",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.model, a tokenizer.json, their folder or its name on the Hub; default: "
        "the checkpoint's, or what lies beside the npz",
    )
    parser.add_argument(
        "--variant",
        metavar="RECIPE",
        action="append",
        help=f"{LOSSLESS} (the default), or a recipe as `quantize` takes it; may be repeated",
    )
    parser.add_argument(
        "--calibrate", metavar="DIR", type=Path, help="as in `quantize`; default: sample images"
    )
    parser.add_argument("--no-calibration", action="store_true", help="as in `quantize`")
    parser.add_argument(
        "--sliding-window",
        choices=get_args(SlidingWindow),
        default="full",
        help="what an answer of PaliGemma 2 sees beyond 4096 tokens: everything, as it was trained "
        "(the default), or in every other layer the last 4096, as in transformers",
    )
    add_hub_options(parser, of="CHECKPOINT")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.set_defaults(command=_export)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare a bundle with its checkpoint in transformers (float32, eager attention),\n"
        "stage by stage. Writes the figures into the bundle; exits with 1 past a tolerance."
    )
    parser.epilog = (
        "examples:\n"
        "  paligemma-edge verify mix.bundle paligemma-3b-mix-224\n"
        "  paligemma-edge verify parts.bundle paligemma-3b-pt-224 --adapter parts-lora"
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        action="append",
        help="a LoRA adapter that the bundle was exported with; peft merges it into the original; "
        "may be repeated",
    )
    add_hub_options(parser, of="CHECKPOINT")
    parser.add_argument("--variant", metavar="NAME", help="default: the first one for this device")
    parser.add_argument(
        "--samples",
        metavar="DIR",
        type=Path,
        help="images with a prompts.json; default: three images that are drawn",
    )
    parser.add_argument("--max-new-tokens", type=int, default=DEFAULT_MAX_NEW_TOKENS, metavar="N")
    parser.set_defaults(command=_verify)


def _export(options: argparse.Namespace) -> int:
    from paligemma_edge.export.exporter import export
    from paligemma_edge.quantize.fidelity.questions import read_questions, sample_questions

    named = options.variant or [LOSSLESS]
    variants = [None if name == LOSSLESS else load_recipe(name) for name in named]
    folder = options.calibrate
    questions = sample_questions() if folder is None else read_questions(folder)
    # The large one last, so that a wrong name of a small one is told at once.
    adapters, tokenizer = adapter_paths(options), tokenizer_path(options)
    checkpoint = checkpoint_path(options)
    with progress_bars() as report:
        manifest = export(
            checkpoint,
            options.bundle,
            mask_decoder=options.mask_decoder,
            adapters=adapters,
            tokenizer=tokenizer,
            variants=variants,
            questions=None if options.no_calibration else questions,
            overwrite=options.overwrite,
            sliding_window=options.sliding_window,
            progress=report,
        )
    size = sum(record.bytes for record in manifest.files.values())
    names = ", ".join(manifest.variants)
    print(f"{options.bundle}: {names}, {len(manifest.files)} files, {size / 1e6:,.1f} MB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from paligemma_edge.export.verify.parity import render
    from paligemma_edge.export.verify.verify import verify

    console = Console(stderr=True)
    samples = None if options.samples is None else read_samples(options.samples)
    adapters, checkpoint = adapter_paths(options), checkpoint_path(options)
    with console.status("reading the original") as status:
        report = verify(
            options.bundle,
            checkpoint,
            variant=options.variant,
            samples=samples,
            max_new_tokens=options.max_new_tokens,
            adapters=adapters,
            progress=status.update,
        )
    Console().print(render(report))
    return 0 if report.passed else 1
