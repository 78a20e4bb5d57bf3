"""A checkpoint becomes a bundle: read, build, write one tensor at a time, commit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from paligemma_edge.export.checkpoint import Checkpoint, open_checkpoint
from paligemma_edge.export.config import CONFIG_FILE, PaliGemmaConfig
from paligemma_edge.export.decoder import build_decoder
from paligemma_edge.export.mask_decoder import build_mask_decoder, read_mask_weights
from paligemma_edge.export.preprocessor import read_image_facts
from paligemma_edge.export.projector import build_projector
from paligemma_edge.export.tokenizer import TokenizerExport, read_tokenizer
from paligemma_edge.export.vision_encoder import build_vision_encoder
from paligemma_edge.quantize.calibration import Calibration, without_answers
from paligemma_edge.quantize.cured import (
    cured_with,
    require_distinct,
    require_layers,
    without_calibration,
)
from paligemma_edge.quantize.graph_file import weight_bytes, write_graph
from paligemma_edge.quantize.make import choices_of, make
from paligemma_edge.quantize.questions import Question
from paligemma_edge.quantize.recipe import Recipe
from paligemma_edge.quantize.variant import describe_variant, write_variant
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle import sha256
from paligemma_edge.runtime.bundle_writer import BundleWriter, new_bundle
from paligemma_edge.runtime.contract import ImageFacts, Manifest, ModelFacts, Variant
from paligemma_edge.runtime.prompt import PromptEncoder

LOSSLESS = "cpu-fp32"
TOKENIZER_FILE = "tokenizer.model"
_WEIGHT_DTYPES: Mapping[ir.DataType, Literal["float32", "bfloat16", "float16"]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT16: "float16",
}

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all


@dataclass(frozen=True)
class _Source:
    """All that is read before anything is written."""

    directory: Path
    checkpoint: Checkpoint
    tokenizer: TokenizerExport
    image: ImageFacts
    graphs: Mapping[str, ir.Model]


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    mask_decoder: str | os.PathLike[str] | None = None,
    variants: Sequence[Recipe | None] = (None,),
    questions: Sequence[Question] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write variants of a checkpoint into a new bundle; None stands for the lossless one.

    The lossless variant keeps the checkpoint's dtype and is computed with in float32; a recipe's
    is written straight from the checkpoint, calibrated with the prompts of `questions` if there
    are any. `mask_decoder` is the path of PaliGemma's `vae-oid.npz`. CheckpointError,
    TokenizerError and OptionError say what is wrong with the source or a recipe, OutputError what
    stands in the way; then nothing is left behind.
    """
    require_distinct(LOSSLESS if recipe is None else recipe.name for recipe in variants)
    source = _read(Path(checkpoint), mask_decoder)
    for recipe in variants:
        if recipe is not None:
            require_layers(source.graphs, recipe)
    with new_bundle(bundle, overwrite=overwrite) as writer:
        writer.write(TOKENIZER_FILE, source.tokenizer.model_bytes)
        manifest = _describe(source)
        made: dict[str, Variant] = {}
        for recipe in variants:
            if recipe is None:
                made[LOSSLESS] = _write_lossless(writer, source, progress)
            else:
                calibration = _calibration(writer, manifest, recipe, questions)
                made[recipe.name] = _write_recipe(writer, source, recipe, calibration, progress)
        hashed = _Meter("hashing", writer.bytes(), progress)
        return writer.finish(dataclasses.replace(manifest, variants=made), hashed.add)


def build_graphs(
    checkpoint: Checkpoint, masks: Mapping[str, ir.TensorProtocol] | None = None
) -> dict[str, ir.Model]:
    """The graphs of a checkpoint, in the order of the data; tensors are still on disk."""
    config, tensors = checkpoint.config, checkpoint.tensors
    graphs = {
        contract.VISION_ENCODER: build_vision_encoder(config.vision, tensors),
        contract.PROJECTOR: build_projector(config, tensors),
        contract.DECODER: build_decoder(config.text, tensors),
    }
    if masks is not None:
        graphs[contract.MASK_DECODER] = build_mask_decoder(masks)
    return graphs


def _read(directory: Path, mask_decoder: str | os.PathLike[str] | None) -> _Source:
    checkpoint = open_checkpoint(directory)
    masks = None if mask_decoder is None else read_mask_weights(mask_decoder)
    return _Source(
        directory=directory,
        checkpoint=checkpoint,
        tokenizer=read_tokenizer(directory, checkpoint.config),
        image=read_image_facts(directory, checkpoint.config),
        graphs=build_graphs(checkpoint, masks),
    )


def _write_lossless(writer: BundleWriter, source: _Source, progress: Progress | None) -> Variant:
    total = sum(map(weight_bytes, source.graphs.values()))
    writer.require_space(total)
    written = _Meter("writing", total, progress)
    for name, graph in source.graphs.items():
        write_graph(graph, writer.path(_graph_file(name)), written.add)
    return _lossless(source, writer.files())


def _write_recipe(
    writer: BundleWriter,
    source: _Source,
    recipe: Recipe,
    calibration: Calibration | None,
    progress: Progress | None,
) -> Variant:
    tell = progress or (lambda *_: None)
    if calibration is None:
        recipe = without_calibration(recipe)
    facts = _model_facts(source.checkpoint.config)
    cured = cured_with(source.graphs, facts, recipe, calibration, tell)
    choices = choices_of(cured, recipe, measure=calibration is not None)
    made = make(cured, recipe, choices, facts=facts, calibration=calibration, tell=tell)
    graphs = made.graphs
    write_variant(writer, recipe, graphs, tell)
    files = [name for name in writer.files() if name.startswith(f"{recipe.name}/")]
    return describe_variant(recipe, graphs, files)


def _calibration(
    writer: BundleWriter,
    manifest: Manifest,
    recipe: Recipe,
    questions: Sequence[Question] | None,
) -> Calibration | None:
    if not questions or not (recipe.layers or recipe.compute == "float16"):
        return None
    encoder = PromptEncoder(writer.path(TOKENIZER_FILE), manifest.tokenizer)
    return without_answers(manifest, encoder, questions)


def _describe(source: _Source) -> Manifest:
    config, checkpoint = source.checkpoint.config, source.checkpoint
    return Manifest(
        schema_version=contract.SCHEMA_VERSION,
        created_by=f"paligemma-edge {version('paligemma-edge')}",
        source={
            "checkpoint": source.directory.resolve().name,
            "config_sha256": sha256(source.directory / CONFIG_FILE),
            "weights": ", ".join(f"{f.name} ({f.stat().st_size} bytes)" for f in checkpoint.files),
        },
        model=_model_facts(config),
        tokenizer=source.tokenizer.facts,
        image=source.image,
        variants={},
    )


def _model_facts(config: PaliGemmaConfig) -> ModelFacts:
    text = config.text
    return ModelFacts(
        family="paligemma",
        image_tokens=config.vision.image_tokens,
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_length=text.max_position_embeddings,
    )


def _lossless(source: _Source, files: Sequence[str]) -> Variant:
    parameters = sum(tensor.size for tensor in source.checkpoint.tensors.values())
    return Variant(
        device="cpu",
        recipe="fp32",
        graphs={name: _graph_file(name) for name in source.graphs},
        weight_dtype=_WEIGHT_DTYPES[source.checkpoint.dtype],
        compute_dtype="float32",
        memory_bytes=parameters * np.dtype(np.float32).itemsize,
        files=tuple(name for name in files if name.startswith(f"{LOSSLESS}/")),
    )


def _graph_file(name: str) -> str:
    return f"{LOSSLESS}/{name}.onnx"


class _Meter:
    """Adds up the bytes of a stage and reports them."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self.stage, self.total, self.progress, self.done = stage, total, progress, 0

    def add(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            self.progress(self.stage, min(self.done, self.total), self.total)
