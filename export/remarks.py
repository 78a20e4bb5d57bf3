"""What an export says of the files beside the weights: which it took, and which are missing."""

from __future__ import annotations

from collections.abc import Iterator

from paligemma_edge.export.checkpoint.config import GENERATION_FILE
from paligemma_edge.export.checkpoint.generation_config import unfollowed_fields
from paligemma_edge.export.checkpoint.mask_decoder_file import (
    MASK_DECODER_ADDRESS,
    MASK_DECODER_FILE,
)
from paligemma_edge.export.origin import terms_of
from paligemma_edge.export.source import ExportSource, MaskDecoder


def remarks(source: ExportSource, choice: MaskDecoder) -> Iterator[str]:
    """Lines for the person who exports; what was chosen by an option needs none."""
    if choice is None:
        yield _about_masks(source)
    yield _about_licenses(source)
    yield from source.licenses.refused
    yield from _about_generation(source)


def _about_masks(source: ExportSource) -> str:
    if source.mask_decoder is not None:
        return f"masks: {source.mask_decoder} is taken"
    return (
        f"masks: none, `segment` will give boxes, since {MASK_DECODER_FILE} is not beside the "
        f"weights; it is at {MASK_DECODER_ADDRESS}, for --mask-decoder"
    )


def _about_generation(source: ExportSource) -> Iterator[str]:
    if fields := unfollowed_fields(source.checkpoint.directory):
        yield (
            f"answers: {GENERATION_FILE} has {', '.join(fields)}, which transformers' generate "
            "follows by itself; a bundle takes its eos_token_id alone, and answers greedily where "
            "no option says otherwise"
        )


def _about_licenses(source: ExportSource) -> str:
    if names := source.licenses.contents:
        return f"licence: the bundle has {', '.join(names)} of the checkpoint"
    terms = terms_of(source) or "the terms that the model came with"
    return f"licence: no file is beside the weights; pass the bundle on with {terms}"
