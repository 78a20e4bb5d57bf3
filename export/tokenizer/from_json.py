"""A sentencepiece model from a tokenizer.json, checked to be equal on the probe texts.

Needed where a checkpoint was saved without its tokenizer.model. Knows the two formats: a BPE
with byte fallback whose merges are ranked (tokenizers) or whose pieces have scores
(sentencepiece). What cannot be converted exactly is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer

from paligemma_edge.export.tokenizer.probe_texts import LOC_PIECES, SEG_PIECES, probe_texts
from paligemma_edge.runtime.errors import TokenizerError

IMAGE_PIECE = "<image>"
UNKNOWN_PIECE = "<unk>"
CONTROL_PIECES = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>"}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PB: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time
ADVICE = "put the tokenizer.model of the base PaliGemma beside it"


def convert_tokenizer(path: Path) -> bytes:
    """Return the sentencepiece model that encodes and decodes as a tokenizer.json does.

    Raises TokenizerError when there is no such model, naming the first difference.
    """
    tokenizer = _load(path)
    _add_paligemma_tokens(tokenizer)
    model = _build(json.loads(tokenizer.to_str()), path)
    try:
        processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} has no sentencepiece model ({str(error).splitlines()[0]}); {ADVICE}"
        ) from None
    check_equal(tokenizer, processor)
    return model


def check_equal(tokenizer: Tokenizer, processor: SentencePieceProcessor) -> None:
    """Raise TokenizerError at the first probe text that the two encode or decode differently."""
    for text in probe_texts():
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        actual = processor.encode(text)
        if actual != wanted:
            raise TokenizerError(
                f"tokenizer.json encodes {text!r} as {wanted}, its sentencepiece model as "
                f"{actual}; {ADVICE}"
            )
        returned = processor.decode(actual)
        if returned != (original := tokenizer.decode(wanted, skip_special_tokens=False)):
            raise TokenizerError(
                f"tokenizer.json decodes {wanted} as {original!r}, its sentencepiece model as "
                f"{returned!r}; {ADVICE}"
            )


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"{path} is not a tokenizer that can be read ({error}); download it again, or {ADVICE}"
        ) from None


def _add_paligemma_tokens(tokenizer: Tokenizer) -> None:
    """Add the tokens that PaliGemmaProcessor adds; tokens of the vocabulary keep their ids."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([AddedToken(IMAGE_PIECE, normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(piece) for piece in (*LOC_PIECES, *SEG_PIECES)])


def _build(data: Mapping[str, Any], path: Path) -> bytes:
    bpe = data["model"]
    if bpe.get("type") != "BPE":
        raise TokenizerError(f"{path} holds a {bpe.get('type')} model, wanted BPE; {ADVICE}")
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    pieces = _pieces_by_id({**bpe["vocab"], **added}, path)
    ranks = _ranks(bpe["merges"])
    proto = _PB.ModelProto()
    for piece in pieces:
        kind = _kind(piece, piece in added, len(piece) == 1 or piece in ranks)
        proto.pieces.add(piece=piece, score=-float(ranks.get(piece, len(ranks))), type=kind)
    _specify(proto, pieces, bool(bpe.get("byte_fallback")))
    return bytes(proto.SerializeToString())


def _pieces_by_id(vocabulary: Mapping[str, int], path: Path) -> list[str]:
    """Pieces in the order of their ids, without `<image>` where it comes last."""
    pieces: dict[int, str] = {}
    for piece, token in vocabulary.items():
        # A tab may share the id of its byte token, or replace it: see GemmaConverter.vocab.
        if _BYTE.fullmatch(pieces.get(token, "")) is None:
            pieces[token] = piece
    if (tab := vocabulary.get("\t")) is not None and "<0x09>" not in vocabulary:
        pieces[tab] = "<0x09>"
    if pieces.get(len(pieces) - 1) == IMAGE_PIECE:
        del pieces[len(pieces) - 1]
    if gaps := [i for i in range(len(pieces)) if i not in pieces]:
        raise TokenizerError(
            f"{path} has no piece for {len(gaps)} ids, the first is {gaps[0]}; {ADVICE}"
        )
    return [pieces[i] for i in range(len(pieces))]


def _ranks(merges: Sequence[str | Sequence[str]]) -> dict[str, int]:
    """Rank of each merged piece: that of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(parts), len(ranks))
    return ranks


def _kind(piece: str, added: bool, reachable: bool) -> str:
    if piece == UNKNOWN_PIECE:
        return "UNKNOWN"
    if piece in CONTROL_PIECES.values():
        return "CONTROL"
    if added:
        return "USER_DEFINED"
    if _BYTE.fullmatch(piece):
        return "BYTE"
    return "NORMAL" if reachable else "UNUSED"


def _specify(
    proto: Any,  # noqa: ANN401 - see _PB
    pieces: list[str],
    byte_fallback: bool,
) -> None:
    ids = {piece: token for token, piece in enumerate(pieces)}
    trainer = proto.trainer_spec
    trainer.model_type = _PB.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = byte_fallback
    for name, piece in {**CONTROL_PIECES, "unk": UNKNOWN_PIECE}.items():
        setattr(trainer, f"{name}_id", ids.get(piece, -1))
        setattr(trainer, f"{name}_piece", piece)
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
