"""A sentencepiece model of any size with PaliGemma's special pieces at their ids.

Tests and measurements do not need the real vocabulary: this one has the same control pieces,
bytes, newline runs, `<loc>` and `<seg>`, and fills the rest with short strings of letters that
its own merges can reach. At 257,152 pieces the special pieces have the ids of the real tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sentencepiece import sentencepiece_model_pb2

FULL_SIZE = 257_152
SMALLEST_SIZE = 1_700
IMAGE_TOKEN = "<image>"
LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))

_PB: Any = sentencepiece_model_pb2  # protobuf creates its classes at run time
_KIND = _PB.ModelProto.SentencePiece
_CONTROL = ("<pad>", "<eos>", "<bos>")
_OWN = (
    "<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99)),
    "<start_of_turn>", "<end_of_turn>", *("\n" * n for n in range(1, 32)),
)  # fmt: skip
_LETTERS = "▁etaoinshrdlucmfwypvbgkqjxz"
_OTHERS = "".join(
    chr(code) for code in (*range(33, 127), *range(0xC0, 0x100)) if chr(code) not in _LETTERS
)


def build_tokenizer(size: int = FULL_SIZE) -> bytes:
    """Return a tokenizer.model of `size` pieces; `<image>` is the id after them."""
    if size < SMALLEST_SIZE:
        raise ValueError(f"a tokenizer of {size} pieces, wanted at least {SMALLEST_SIZE}")
    proto = _PB.ModelProto()
    tail = len(LOCATIONS) + len(SEGMENTS)
    for rank, (piece, kind) in enumerate(itertools.islice(_pieces(), size - tail)):
        proto.pieces.add(
            piece=piece, score=-float(rank) if kind == _KIND.NORMAL else 0.0, type=kind
        )
    for piece in (*LOCATIONS, *SEGMENTS):
        proto.pieces.add(piece=piece, score=0.0, type=_KIND.USER_DEFINED)
    _specify(proto)
    return bytes(proto.SerializeToString())


def _pieces() -> Iterator[tuple[str, int]]:
    yield from ((piece, _KIND.CONTROL) for piece in _CONTROL)
    yield "<unk>", _KIND.UNKNOWN
    yield from ((piece, _KIND.USER_DEFINED) for piece in _OWN)
    yield from ((f"<0x{byte:02X}>", _KIND.BYTE) for byte in range(256))
    yield from ((letter, _KIND.NORMAL) for letter in _LETTERS + _OTHERS)
    for length in itertools.count(2):
        for letters in itertools.product(_LETTERS, repeat=length):
            yield "".join(letters), _KIND.NORMAL


def _specify(proto: Any) -> None:  # noqa: ANN401 - see _PB
    trainer = proto.trainer_spec
    trainer.model_type = _PB.TrainerSpec.BPE
    trainer.vocab_size = len(proto.pieces)
    trainer.byte_fallback = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = _CONTROL
    trainer.unk_piece = "<unk>"
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False


def write_tokenizer(directory: Path, model: bytes, *, only_json: bool = False) -> None:
    """Write tokenizer.model, or the tokenizer.json that transformers converts it into."""
    if not only_json:
        directory.joinpath("tokenizer.model").write_bytes(model)
        return
    from transformers import AddedToken, GemmaTokenizer

    with TemporaryDirectory() as plain:
        Path(plain, "tokenizer.model").write_bytes(model)
        tokenizer = GemmaTokenizer.from_pretrained(plain)
    image = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    tokenizer.save_pretrained(directory)
    directory.joinpath("tokenizer.model").unlink(missing_ok=True)
