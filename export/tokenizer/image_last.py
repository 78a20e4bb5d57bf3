"""`<image>` behind every other token, where a fine-tune added tokens behind it.

Everything after the exporter relies on one rule: ids from `<image>` on are never part of an answer.
So a bundle gives `<image>` the last id, and each token that was added behind it the id before its
own. Its row of the table moves with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.checkpoint.tensors import Array, CheckpointTensor

_PB: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time


def without_piece(model: bytes, token: int) -> bytes:
    """The sentencepiece model without a piece; those after it have the id before their own."""
    proto = _PB.ModelProto.FromString(model)
    del proto.pieces[token]
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString())


def with_image_last(config: PaliGemmaConfig, last: int) -> PaliGemmaConfig:
    """The config of a checkpoint whose `<image>` becomes the id `last`."""
    moved = config.image_token_id
    return dataclasses.replace(
        config,
        image_token_id=last,
        pad_token_id=renumbered(config.pad_token_id, moved),
        bos_token_id=renumbered(config.bos_token_id, moved),
        eos_token_ids=tuple(renumbered(token, moved) for token in config.eos_token_ids),
    )


def renumbered(token: int, moved_image_id: int) -> int:
    """A token's id once `<image>` is the last."""
    return token if token < moved_image_id else token - 1


class MovedRow(CheckpointTensor):
    """A table with the row `first` at the place `last`, and those between one place earlier."""

    def __init__(self, table: CheckpointTensor, first: int, last: int) -> None:
        rows, width = map(int, table.shape.numpy())
        super().__init__(table.dtype, (rows, width), str(table.name))
        self._table = table
        edges = (0, first * width, last * width, (last + 1) * width, rows * width)
        shifts = (0, width, (first - last) * width, 0)
        self._spans_from = tuple(zip(edges, edges[1:], shifts, strict=False))

    def read(self, start: int, stop: int) -> Array:
        """Read the parts of the table that those elements come from."""
        return np.concatenate(list(self._parts(start, stop)))

    def _parts(self, start: int, stop: int) -> Iterable[Array]:
        for first, last, shift in self._spans_from:
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield self._table.read(low + shift, high + shift)
