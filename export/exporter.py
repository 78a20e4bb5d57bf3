"""A checkpoint becomes a bundle: read, build, write one tensor at a time, commit."""

from __future__ import annotations

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
from paligemma_edge.quantize.graph_file import weight_bytes, write_graph
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle import sha256
from paligemma_edge.runtime.bundle_writer import BundleWriter, new_bundle
from paligemma_edge.runtime.contract import ImageFacts, Manifest, ModelFacts, Variant

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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the lossless variant of a checkpoint into a new bundle.

    Weights keep the checkpoint's dtype and are computed with in float32. `mask_decoder` is the
    path of PaliGemma's `vae-oid.npz`. CheckpointError and TokenizerError say what is wrong with
    the source, OutputError what stands in the way; then nothing is left behind.
    """
    source = _read(Path(checkpoint), mask_decoder)
    with new_bundle(bundle, overwrite=overwrite) as writer:
        return _write(writer, source, progress)


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


def _write(writer: BundleWriter, source: _Source, progress: Progress | None) -> Manifest:
    total = sum(map(weight_bytes, source.graphs.values()))
    writer.require_space(total)
    written, hashed = _Meter("writing", total, progress), _Meter("hashing", total, progress)
    for name, graph in source.graphs.items():
        write_graph(graph, writer.path(_graph_file(name)), written.add)
    writer.write(TOKENIZER_FILE, source.tokenizer.model_bytes)
    return writer.finish(_describe(source, writer.files()), hashed.add)


def _describe(source: _Source, files: Sequence[str]) -> Manifest:
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
        variants={LOSSLESS: _lossless(source, files)},
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
