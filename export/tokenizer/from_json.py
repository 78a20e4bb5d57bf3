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

from paligemma_edge.export.checkpoint.content import require_content
from paligemma_edge.export.tokenizer.added_pieces import IMAGE_PIECE, AddedPieces
from paligemma_edge.export.tokenizer.probe_texts import (
    LOC_PIECES,
    SEG_PIECES,
    probe_texts,
    texts_around,
)
from paligemma_edge.runtime.errors import TokenizerError
from paligemma_edge.runtime.printable import short_line

UNKNOWN_PIECE = "<unk>"
CONTROL_PIECES = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>"}
_CONTROL = frozenset(CONTROL_PIECES.values())
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PB: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time
_SHOWN = 60  # characters of a text in a message
ADVICE = "put the tokenizer.model of the base PaliGemma beside it"


def convert_tokenizer(path: Path) -> bytes:
    """Return the sentencepiece model that encodes and decodes as a tokenizer.json does.

    Raises TokenizerError when there is no such model, naming the first difference.
    """
    data, tokenizer = _load(path)
    _add_paligemma_tokens(tokenizer)
    bpe = data["model"]
    if bpe.get("type") != "BPE":
        raise TokenizerError(f"{path} holds a {bpe.get('type')} model, wanted BPE; {ADVICE}")
    added = AddedPieces.of(tokenizer)
    if added.unlike:
        raise TokenizerError(
            f"{path} matches {short_line(repr(added.unlike[0]))} as a word of its own or with the "
            "white space around it, which sentencepiece cannot do; save the tokenizer with added "
            f"tokens that have neither single_word nor lstrip nor rstrip, or {ADVICE}"
        )
    model = _build(bpe, added, path)
    try:
        processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} has no sentencepiece model ({str(error).splitlines()[0]}); {ADVICE}"
        ) from None
    _refuse_literal(tokenizer, processor, added.literal, path)
    check_equal(tokenizer, processor, added.own)
    return model


def _refuse_literal(
    tokenizer: Tokenizer, processor: SentencePieceProcessor, words: Sequence[str], path: Path
) -> None:
    for word in words:
        if processor.encode(word) != tokenizer.encode(word, add_special_tokens=False).ids:
            raise TokenizerError(
                f"{path} matches {_shown(word)} in a text that holds U+2581 itself, which "
                "sentencepiece cannot tell from a blank; save the tokenizer with a blank in the "
                f"names of added tokens, or {ADVICE}"
            )


def check_equal(
    tokenizer: Tokenizer, processor: SentencePieceProcessor, own: Sequence[str] = ()
) -> None:
    """Raise TokenizerError at the first probe text that the two encode or decode differently.

    `own` are added tokens of the tokenizer, which are tried in several places.
    """
    for text in (*probe_texts(), *texts_around(own)):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        actual = processor.encode(text)
        if actual != wanted:
            raise TokenizerError(
                f"tokenizer.json encodes {_shown(text)} as {_shown(wanted)}, its sentencepiece "
                f"model as {_shown(actual)}; {ADVICE}"
            )
        returned = processor.decode(actual)
        if returned != (original := tokenizer.decode(wanted, skip_special_tokens=False)):
            raise TokenizerError(
                f"tokenizer.json decodes {_shown(wanted)} as {_shown(original)}, its "
                f"sentencepiece model as {_shown(returned)}; {ADVICE}"
            )


def _shown(value: object) -> str:
    return short_line(repr(value), _SHOWN)


def _load(path: Path) -> tuple[Mapping[str, Any], Tokenizer]:
    """The file as JSON, and as the library reads it."""
    require_content(path, TokenizerError)
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text), Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        reason = short_line(str(error))
        raise TokenizerError(
            f"{path} is not a tokenizer that can be read ({reason}); download it again, or {ADVICE}"
        ) from None


def _add_paligemma_tokens(tokenizer: Tokenizer) -> None:
    """Add the tokens that PaliGemmaProcessor adds; tokens of the vocabulary keep their ids."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([AddedToken(IMAGE_PIECE, normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(piece) for piece in (*LOC_PIECES, *SEG_PIECES)])


def _build(bpe: Mapping[str, Any], added: AddedPieces, path: Path) -> bytes:
    pieces = _pieces_by_id(bpe["vocab"], added, path)
    ranks, last = _ranks(bpe["merges"]), len(bpe["merges"])
    proto = _PB.ModelProto()
    for token, piece in enumerate(pieces):
        kind = _kind(piece, token in added.matched, len(piece) == 1 or piece in ranks)
        proto.pieces.add(piece=piece, score=-float(ranks.get(piece, last)), type=kind)
    _specify(proto, pieces, bool(bpe.get("byte_fallback")))
    return bytes(proto.SerializeToString())


def _pieces_by_id(vocabulary: Mapping[str, int], added: AddedPieces, path: Path) -> list[str]:
    """Pieces in the order of their ids, without `<image>` where it comes last."""
    pieces: dict[int, str] = {}
    for piece, token in (*vocabulary.items(), *((p, t) for t, p in added.named.items())):
        # A tab may share the id of its byte token, or replace it: see GemmaConverter.vocab.
        if _BYTE.fullmatch(pieces.get(token, "")) is None:
            pieces[token] = piece
    if (tab := vocabulary.get("\t")) is not None and "<0x09>" not in vocabulary:
        pieces[tab] = "<0x09>"
    pieces |= added.matched
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
    for rank, merge in enumerate(merges):
        piece = merge.replace(" ", "") if isinstance(merge, str) else merge[0] + merge[1]
        ranks.setdefault(piece, rank)
    return ranks


def _kind(piece: str, matched: bool, reachable: bool) -> str:
    if piece == UNKNOWN_PIECE:
        return "UNKNOWN"
    if piece in _CONTROL or piece == IMAGE_PIECE:
        return "CONTROL"
    if matched:
        return "USER_DEFINED"
    if piece.startswith("<0x") and _BYTE.fullmatch(piece):
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
