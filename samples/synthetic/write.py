"""Writes random PaliGemma checkpoints of any official size, full or shrunk, from little memory.

    python -m samples.synthetic OUT --model paligemma-3b-224
    python -m samples.synthetic OUT --model paligemma2-3b-224

Speed and memory do not depend on the values of the weights, so random ones are enough to measure
them. Values are scaled per tensor so that activations stay in a sane range.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from sentencepiece import SentencePieceProcessor

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma_edge.export.checkpoint.tensor_names import Layout
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from samples.synthetic.config import Dialect, write_configs
from samples.synthetic.models import MODELS, official
from samples.synthetic.tokenizer import build_tokenizer, write_tokenizer
from samples.synthetic.weights import DType, TensorWriter, checkpoint_bytes

SPARE_ROWS = 64  # rows of the embedding beyond the tokenizer's pieces: <image> and padding


def write_checkpoint(
    directory: Path,
    *,
    vision: VisionConfig,
    text: TextConfig,
    dtype: DType = "bfloat16",
    layout: Layout = "A",
    dialect: Dialect = "hub",
    shards: int = 1,
    seed: int = 0,
    tokenizer: Path | None = None,
    only_tokenizer_json: bool = False,
    report: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a checkpoint; its values depend on sizes, dtype and seed, not on the key layout.

    `report` is called with the number of bytes written since its last call.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pieces = _write_tokenizer(directory, text, tokenizer, only_tokenizer_json)
    config = _config(vision, text, pieces)
    write_configs(directory, config, dtype, dialect)
    writer = TensorWriter(directory=directory, dtype=dtype, layout=layout, report=report)
    writer.write(expected_shapes(config), shards, seed)


def _config(vision: VisionConfig, text: TextConfig, image_token_id: int) -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        image_token_id=image_token_id,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_ids=(1,),
    )


def _write_tokenizer(
    directory: Path, text: TextConfig, source: Path | None, only_json: bool
) -> int:
    """Write the tokenizer; returns its number of pieces."""
    if source is None:
        model = build_tokenizer(text.vocab_size - SPARE_ROWS)
    else:
        model = (source / "tokenizer.model").read_bytes()
    write_tokenizer(directory, model, only_json=only_json)
    return int(SentencePieceProcessor(model_proto=model).get_piece_size())


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.synthetic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--model", choices=sorted(MODELS), default="paligemma-3b-224")
    parser.add_argument(
        "--shrink", action="store_true", help="shrink the model to a few MB, for tests"
    )
    parser.add_argument("--dtype", choices=get_args(DType), default="bfloat16")
    parser.add_argument(
        "--layout", choices=get_args(Layout), default="A", help="layout of the tensor names"
    )
    parser.add_argument(
        "--dialect", choices=get_args(Dialect), default="hub", help="form of config.json"
    )
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer.model to copy")
    parser.add_argument(
        "--only-tokenizer-json",
        action="store_true",
        help="write tokenizer.json and no tokenizer.model",
    )
    options = parser.parse_args(arguments)
    if options.shards < 1:
        parser.error(f"--shards is {options.shards}, wanted 1 or more")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"{options.out} is not empty, wanted a new or empty folder")
    return options


def run(options: argparse.Namespace) -> None:
    vision, text = official(options.model, shrink=options.shrink)
    total = checkpoint_bytes(expected_shapes(_config(vision, text, 0)), options.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(options.out).free) < total * 1.05:
        raise SystemExit(
            f"{options.out} has {free / 1e9:.1f} GB free, wanted {total * 1.05 / 1e9:.1f} GB"
        )
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress("{task.description}", *columns) as progress:
        task = progress.add_task(options.model, total=total)
        write_checkpoint(
            options.out,
            vision=vision,
            text=text,
            dtype=options.dtype,
            layout=options.layout,
            dialect=options.dialect,
            shards=options.shards,
            seed=options.seed,
            tokenizer=options.tokenizer,
            only_tokenizer_json=options.only_tokenizer_json,
            report=lambda count: progress.advance(task, count),
        )
