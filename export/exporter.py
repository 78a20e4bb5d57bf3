"""`export`: a checkpoint becomes a bundle, written one tensor at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.golden_question import golden_question
from paligemma_edge.export.origin import describe_origin
from paligemma_edge.export.remarks import remarks
from paligemma_edge.export.source import ExportSource, MaskDecoder, read_source
from paligemma_edge.export.variant_names import LOSSLESS_VARIANT
from paligemma_edge.quantize.calibration.samples import Calibration, without_answers
from paligemma_edge.quantize.fidelity.questions import Question
from paligemma_edge.quantize.graphs.graph_file import Written, disk_bytes, write_graph
from paligemma_edge.quantize.recipes.recipe import LOSSLESS_RECIPE, Recipe
from paligemma_edge.quantize.variant.build import ModelSource, build_variant
from paligemma_edge.quantize.variant.files import write_variant
from paligemma_edge.quantize.variant.prepare import require_distinct, require_layers
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.writer import BundleWriter, new_bundle
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import (
    LICENSES_FOLDER,
    SCHEMA_VERSION,
    Manifest,
    ModelConfig,
    Variant,
    problem_of_note,
)
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from paligemma_edge.runtime.validation import check_flag, plain

TOKENIZER_FILE = "tokenizer.model"
_WEIGHT_DTYPES: Mapping[ir.DataType, Literal["float32", "bfloat16", "float16"]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT16: "float16",
}


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    mask_decoder: MaskDecoder = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
    tokenizer: str | os.PathLike[str] | None = None,
    variants: Sequence[Recipe | None] = (None,),
    questions: Sequence[Question] | None = None,
    overwrite: bool = False,
    default: bool = False,
    sliding_window: SlidingWindow = "full",
    note: str = "",
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write variants of a PaliGemma checkpoint into a new bundle.

    If it fails, no part of the bundle is left.

    Args:
        checkpoint: A directory as transformers saves it, or an npz as big_vision does (whole, or
            any of its parts `NAME.npz.part0`, ...).
        bundle: The directory to create.
        mask_decoder: PaliGemma's `vae-oid.npz`, which turns <seg> tokens into masks. None takes
            the one beside the weights; without one, and with False, the bundle gives boxes only.
        adapters: Directories of LoRA adapters as PEFT saves them, merged in this order.
        tokenizer: A `tokenizer.model`, a `tokenizer.json` or their directory, in place of the one
            beside the checkpoint.
        variants: The variants to make. None is the lossless one, `cpu-fp32`: weights in the
            checkpoint's dtype, computed with in float32. A recipe is applied straight to the
            checkpoint, without a lossless variant.
        questions: Images with prompts to calibrate recipes with; without them each weight is
            rounded to its nearest code.
        overwrite: Replace an existing bundle.
        default: Mark the variant as the one that is used where none is named; for a single one.
        sliding_window: For a PaliGemma 2, what the tokens of an answer attend to in its sliding
            layers: "full", everything, as the model was trained; "hf", the config's window, as
            transformers computes it.
        note: A version or remark of yours, at most 500 printable characters; kept in the manifest.
        log: Called with a line about each file beside the weights that was taken or is missing.
        progress: Called with the stage, the bytes done and the bytes in all.

    Returns:
        The manifest of the bundle.

    Raises:
        CheckpointError: A checkpoint, adapter or mask decoder is damaged or not supported.
        TokenizerError: The tokenizer is missing, damaged or another model's.
        OptionError: A recipe or an option does not fit the checkpoint.
        OutputError: The bundle exists, or cannot be written.

    Example:
        >>> from paligemma_edge.export import export
        >>> manifest = export("paligemma-3b-mix-224", "mix.bundle", note="line 3, retrained")
        >>> list(manifest.variants)
        ['cpu-fp32']
    """
    mask_decoder, note = plain(mask_decoder), plain(note)
    overwrite, default = check_flag("overwrite", overwrite), check_flag("default", default)
    _require_note(note)
    require_distinct(LOSSLESS_VARIANT if recipe is None else recipe.name for recipe in variants)
    if default and len(variants) != 1:
        raise OptionError(
            f"{len(variants)} variants are to be made and one alone can be the default; name one "
            "with it, and add the others by `paligemma-edge quantize`"
        )
    source = read_source(Path(checkpoint), adapters, tokenizer, mask_decoder, sliding_window)
    for recipe in variants:
        if recipe is not None:
            require_layers(source.graphs, recipe)
    with new_bundle(bundle, overwrite=overwrite) as writer:
        for line in remarks(source, choice=mask_decoder):
            (log or _no_log)(line)
        writer.write(TOKENIZER_FILE, source.tokenizer.model_bytes)
        for name, data in source.licenses.contents.items():
            writer.write(f"{LICENSES_FOLDER}/{name}", data)
        manifest = _describe(source, note)
        encoder = PromptEncoder(writer.path(TOKENIZER_FILE), manifest.tokenizer)
        for name, data in golden_question(manifest.image, encoder).items():
            writer.write(name, data)
        made: dict[str, Variant] = {}
        for recipe in variants:
            if recipe is None:
                made[LOSSLESS_VARIANT] = _write_lossless(writer, source, progress)
            else:
                calibration = _calibration(encoder, manifest, recipe, questions)
                made[recipe.name] = _write_recipe(writer, source, recipe, calibration, progress)
        hashed = _Meter("hashing", writer.bytes(), progress)
        marked = next(iter(made)) if default else None
        manifest = dataclasses.replace(manifest, variants=made, default_variant=marked)
        return writer.finish(manifest, hashed.add)


def _no_log(line: str) -> None:
    """Leave a line out."""


def _require_note(note: str) -> None:
    if problem := problem_of_note(note):
        raise OptionError(f"the note {problem}; give one line of plain text")


def _write_lossless(
    writer: BundleWriter, source: ExportSource, progress: Progress | None
) -> Variant:
    total = disk_bytes(source.graphs.values())
    writer.require_space(total)
    written = _Meter("writing", total, progress)
    beside: Written = {}
    for name, graph in source.graphs.items():
        write_graph(graph, writer.path(_graph_file(name)), written.add, beside)
    return _lossless(source, writer.files())


def _write_recipe(
    writer: BundleWriter,
    source: ExportSource,
    recipe: Recipe,
    calibration: Calibration | None,
    progress: Progress | None,
) -> Variant:
    config, image_id = _model_config(source.checkpoint.config), source.tokenizer.config.image_id
    model, report = ModelSource(source.graphs, config, image_id), progress or no_progress
    built = build_variant(model, recipe, calibration, report)
    return write_variant(writer, recipe, built.graphs, built.changes, report)


def _calibration(
    encoder: PromptEncoder,
    manifest: Manifest,
    recipe: Recipe,
    questions: Sequence[Question] | None,
) -> Calibration | None:
    if not questions or not (recipe.layers or recipe.compute == "float16"):
        return None
    return without_answers(manifest, encoder, questions)


def _describe(source: ExportSource, note: str) -> Manifest:
    config = source.checkpoint.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"paligemma-edge {version('paligemma-edge')}",
        note=note,
        source=describe_origin(source),
        model=_model_config(config),
        tokenizer=source.tokenizer.config,
        image=source.image,
        variants={},
    )


def _model_config(config: PaliGemmaConfig) -> ModelConfig:
    text = config.text
    return ModelConfig(
        family="paligemma",
        image_tokens=config.vision.image_tokens,
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_length=text.max_position_embeddings,
    )


def _lossless(source: ExportSource, files: Sequence[str]) -> Variant:
    sizes = {name: tensor.size for name, tensor in source.checkpoint.tensors.items()}
    parameters = sum(sizes.values())
    if contract.PREFILL in source.graphs:  # has the decoder's weights, a second time in memory
        parameters += sum(sizes[name] for name in sizes if name.startswith("decoder."))
    return Variant(
        device="cpu",
        recipe=LOSSLESS_RECIPE,
        graphs={name: _graph_file(name) for name in source.graphs},
        weight_dtype=_WEIGHT_DTYPES[source.checkpoint.dtype],
        compute_dtype="float32",
        memory_bytes=parameters * np.dtype(np.float32).itemsize,
        files=tuple(name for name in files if name.startswith(f"{LOSSLESS_VARIANT}/")),
    )


def _graph_file(name: str) -> str:
    return f"{LOSSLESS_VARIANT}/{name}.onnx"


class _Meter:
    """Adds up the bytes of a stage and reports them."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self.stage, self.total, self.progress, self.done = stage, total, progress, 0

    def add(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            self.progress(self.stage, min(self.done, self.total), self.total)
