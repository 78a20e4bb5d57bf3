"""The command `export`: options in, progress bars and one line out.

The packages of the extra are imported within the command, so that help needs none of them.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import get_args

from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.cli.hub_options import (
    adapter_paths,
    add_hub_options,
    checkpoint_path,
    tokenizer_path,
)
from paligemma_edge.export.variant_names import LOSSLESS_VARIANT
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.system.console import Console


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`, with its description."""
    parser.usage = "%(prog)s [options] CHECKPOINT BUNDLE"
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
    _add_inputs(parser)
    _add_variants(parser)
    add_hub_options(parser)
    parser.add_argument(
        "--note",
        metavar="TEXT",
        default="",
        help="a version or remark of yours, which `inspect` shows; one line",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.set_defaults(command=_export)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and the bundle to create."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="directory, npz, or name on the Hub (org/name, or org/name@revision with a branch, "
        "tag or commit)",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="directory to create")
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument(
        "--mask-decoder",
        metavar="NPZ",
        help="PaliGemma's vae-oid.npz, which turns <seg> tokens into masks; default: the one "
        "beside the weights",
    )
    masks.add_argument(
        "--no-mask-decoder",
        dest="mask_decoder",
        action="store_false",
        default=None,
        help="boxes only, also where vae-oid.npz is beside the weights",
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        action="append",
        help="a LoRA adapter as PEFT saves it, or its name on the Hub, to merge into the weights; "
        "may be repeated, adapters are merged in the order given",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.model, a tokenizer.json, their directory or its name on the Hub; "
        "default: the checkpoint's own, or the one beside the npz",
    )


def _add_variants(parser: argparse.ArgumentParser) -> None:
    """Add which variants are made, and how."""
    parser.add_argument(
        "--variant",
        metavar="RECIPE",
        action="append",
        help="a variant to make: a recipe's name or file, as for `quantize`; may be repeated; "
        f"default: {LOSSLESS_VARIANT}, the lossless one",
    )
    parser.add_argument(
        "--default",
        action="store_true",
        help="mark the variant as the one that is used where none is named",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        type=Path,
        help="directory of images, with a prompts.json or without, to calibrate recipes with, as "
        "for `quantize`; default: the sample images",
    )
    parser.add_argument(
        "--no-calibration",
        action="store_true",
        help="round every weight to its nearest code, without calibration",
    )
    parser.add_argument(
        "--sliding-window",
        choices=get_args(SlidingWindow),
        default="full",
        help="for PaliGemma 2 beyond 4096 tokens: full, the default, lets an answer attend to "
        "everything, as in training; hf only to the last 4096 in every other layer, as in "
        "transformers",
    )


def _export(options: argparse.Namespace) -> int:
    from paligemma_edge.export.exporter import export
    from paligemma_edge.quantize.fidelity.questions import read_questions, sample_questions

    named = options.variant or [LOSSLESS_VARIANT]
    variants = [None if name == LOSSLESS_VARIANT else load_recipe(name) for name in named]
    folder = options.calibrate
    questions = sample_questions() if folder is None else read_questions(folder)
    # The large download last, so that a wrong name of a small one fails at once.
    adapters, tokenizer = adapter_paths(options), tokenizer_path(options)
    checkpoint = checkpoint_path(options)
    with shown_progress() as report:
        manifest = export(
            checkpoint,
            options.bundle,
            mask_decoder=options.mask_decoder,
            adapters=adapters,
            tokenizer=tokenizer,
            variants=variants,
            questions=None if options.no_calibration else questions,
            overwrite=options.overwrite,
            default=options.default,
            sliding_window=options.sliding_window,
            note=options.note,
            log=_note,
            progress=report,
        )
    size = sum(record.bytes for record in manifest.files.values())
    names = ", ".join(manifest.variants)
    made = f"{names}, {len(manifest.files)} files, {size / 1e6:,.1f} MB"
    Console.standard().summary(f"{options.bundle}: {made}")
    return 0


def _note(text: str) -> None:
    logging.getLogger("paligemma_edge").info("%s", text)
