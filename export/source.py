"""Everything an export reads before it writes: checkpoint, adapters, tokenizer, graphs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import onnx_ir as ir

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.checkpoint.license_files import LicenseFiles, read_license_files
from paligemma_edge.export.checkpoint.mask_decoder_file import find_mask_decoder
from paligemma_edge.export.checkpoint.mask_decoder_weights import read_mask_weights
from paligemma_edge.export.checkpoint.open import Checkpoint, open_checkpoint
from paligemma_edge.export.checkpoint.preprocessor_config import read_image_config
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from paligemma_edge.export.checkpoint.tensors import CheckpointTensor
from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.graphs.decoder import build_decoder
from paligemma_edge.export.graphs.mask_decoder import build_mask_decoder
from paligemma_edge.export.graphs.projector import build_projector
from paligemma_edge.export.graphs.vision_encoder import build_vision_encoder
from paligemma_edge.export.lora.adapter import PeftAdapter, read_adapter
from paligemma_edge.export.lora.merge import merge_adapters
from paligemma_edge.export.tokenizer.image_last import MovedRow
from paligemma_edge.export.tokenizer.read import TokenizerExport, read_tokenizer
from paligemma_edge.quantize.graphs.prefill import has_windows, whole_prompt
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ImageConfig

# A path, None for the one beside the weights, False for none.
MaskDecoder: TypeAlias = str | os.PathLike[str] | Literal[False] | None


@dataclass(frozen=True)
class ExportSource:
    """What was read, and the graphs built from it; every weight is still on disk."""

    path: Path
    checkpoint: Checkpoint
    adapters: Sequence[PeftAdapter]  # already merged into the checkpoint's tensors
    tokenizer: TokenizerExport
    mask_decoder: Path | None
    licenses: LicenseFiles
    image: ImageConfig
    graphs: Mapping[str, ir.Model]
    sliding_window: SlidingWindow


def read_source(
    path: Path,
    adapters: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str] | None,
    mask_decoder: MaskDecoder,
    sliding_window: SlidingWindow,
) -> ExportSource:
    """Open what an export needs, with adapters merged, and build its graphs; weights stay on disk.

    Raises the errors of `export` about its source.
    """
    base = open_checkpoint(path)
    _require_window(base.config, sliding_window)
    changes = [read_adapter(Path(folder), expected_shapes(base.config)) for folder in adapters]
    beside = base.weights_directory
    encoder = read_tokenizer(Path(tokenizer or beside), base.config)
    tensors = _renumbered(merge_adapters(base.tensors, changes), encoder)
    checkpoint = dataclasses.replace(base, tensors=tensors)
    masks = _mask_decoder_file(mask_decoder, beside)
    return ExportSource(
        path=path,
        checkpoint=checkpoint,
        adapters=changes,
        tokenizer=encoder,
        mask_decoder=masks,
        licenses=read_license_files(beside),
        image=read_image_config(base.directory, base.config),
        graphs=_build_graphs(
            checkpoint, None if masks is None else read_mask_weights(masks), sliding_window
        ),
        sliding_window=sliding_window,
    )


def _renumbered(
    tensors: Mapping[str, CheckpointTensor], tokenizer: TokenizerExport
) -> Mapping[str, CheckpointTensor]:
    """The table in the order of the bundle's ids."""
    if tokenizer.moved_image_id is None:
        return tensors
    table = MovedRow(tensors[EMBEDDING], tokenizer.moved_image_id, tokenizer.config.image_id)
    return {**tensors, EMBEDDING: table}


def _mask_decoder_file(given: MaskDecoder, directory: Path) -> Path | None:
    if given is False:
        return None
    return find_mask_decoder(directory) if given is None else Path(given)


def _require_window(config: PaliGemmaConfig, sliding_window: SlidingWindow) -> None:
    if sliding_window == "hf" and (
        config.text.gemma2 is None or config.text.gemma2.sliding_window is None
    ):
        raise OptionError(
            "sliding_window is 'hf' and the checkpoint gives no window, wanted a PaliGemma 2 with "
            "a text_config.sliding_window; leave the option out"
        )


def _build_graphs(
    checkpoint: Checkpoint,
    masks: Mapping[str, ir.TensorProtocol] | None,
    sliding_window: SlidingWindow,
) -> dict[str, ir.Model]:
    """The graphs of a checkpoint, in the order of the data."""
    config, tensors = checkpoint.config, checkpoint.tensors
    decoder = build_decoder(config.text, tensors, sliding_window=sliding_window)
    graphs = {
        contract.VISION_ENCODER: build_vision_encoder(config.vision, tensors),
        contract.PROJECTOR: build_projector(config, tensors),
        contract.DECODER: decoder,
    }
    if has_windows(decoder):
        graphs[contract.PREFILL] = whole_prompt(decoder)
    if masks is not None:
        graphs[contract.MASK_DECODER] = build_mask_decoder(masks)
    return graphs
