"""The tokenizer of a checkpoint, as the sentencepiece model and the token ids of a bundle.

`tokenizer.model` is copied unchanged; a `tokenizer.json` is converted where it is alone, or has
tokens that a fine-tune added. Ids are read from the pieces and compared with config.json, never
assumed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sentencepiece import SentencePieceProcessor

from paligemma_edge.export.checkpoint.config import (
    CONFIG_FILE,
    GENERATION_FILE,
    PaliGemmaConfig,
)
from paligemma_edge.export.checkpoint.content import has_file, require_content
from paligemma_edge.export.checkpoint.name_list import join_names
from paligemma_edge.export.tokenizer.added_pieces import IMAGE_PIECE
from paligemma_edge.export.tokenizer.from_json import CONTROL_PIECES, convert_tokenizer
from paligemma_edge.export.tokenizer.image_last import with_image_last, without_piece
from paligemma_edge.export.tokenizer.probe_texts import LOC_PIECES, SEG_PIECES
from paligemma_edge.runtime.errors import TokenizerError
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
ADDED_FILE = "added_tokens.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerExport:
    """The tokenizer as a bundle stores it."""

    model_bytes: bytes  # a sentencepiece model, to be written as `config.file`
    config: TokenizerConfig
    moved_image_id: int | None = None  # the checkpoint's, where tokens were added behind `<image>`


def read_tokenizer(source: Path, config: PaliGemmaConfig) -> TokenizerExport:
    """Read the tokenizer of a checkpoint and check it against its config.

    `source` is the checkpoint's directory, or a file: a sentencepiece model, or a tokenizer.json.
    Raises TokenizerError when it is absent, damaged, not PaliGemma's or not of this checkpoint.
    """
    model, processor = _read(source, config)
    _require_rows(processor, config)
    moved = _inner_image_id(processor, config)
    _require_ends(processor, config, inner=moved is not None)
    if moved is not None:
        model = without_piece(model, moved)
        processor = SentencePieceProcessor(model_proto=model)
        config = with_image_last(config, processor.get_piece_size())
    token_ids = _token_ids(processor, config)
    PromptEncoder(model, token_ids)  # the runtime's own checks
    return TokenizerExport(model_bytes=model, config=token_ids, moved_image_id=moved)


def _read(source: Path, config: PaliGemmaConfig) -> tuple[bytes, SentencePieceProcessor]:
    path = _find(source)
    model = convert_tokenizer(path) if path.suffix == ".json" else _read_model(path)
    processor = _opened(model, path)
    if path == source / MODEL_FILE and _has_more(source, processor, config):
        return _with_added_tokens(source)
    return model, processor


def _find(source: Path) -> Path:
    if not os.path.isdir(source) and has_file(source, TokenizerError):  # noqa: PTH112 - as below
        return source
    for name in (MODEL_FILE, JSON_FILE):
        if has_file(source / name, TokenizerError):
            return source / name
    return _fail(
        f"{source} has neither {MODEL_FILE} nor {JSON_FILE}",
        "put the tokenizer.model of the base PaliGemma there, or give it by --tokenizer",
    )


def _read_model(path: Path) -> bytes:
    require_content(path, TokenizerError)
    try:
        # sentencepiece treats empty bytes as "no model was given"
        return path.read_bytes() or b"\0"
    except OSError as error:
        _fail(f"{path} cannot be read ({error.strerror})", "download it again")


def _opened(model: bytes, path: Path) -> SentencePieceProcessor:
    """The model with all its pieces readable: the library itself does not look at them."""
    try:
        processor = SentencePieceProcessor(model_proto=model)
        processor.id_to_piece(list(range(processor.get_piece_size())))
    except (RuntimeError, UnicodeDecodeError):  # the latter also of the library's own message
        _fail(f"{path} is not a sentencepiece model, or is damaged", "download it again")
    return processor


def _has_more(directory: Path, processor: SentencePieceProcessor, config: PaliGemmaConfig) -> bool:
    """Whether tokens were added to a PaliGemma's tokenizer.model, which is not another model's."""
    _token_ids(processor, dataclasses.replace(config, eos_token_ids=()))
    return bool(_lacking(directory, processor))


def _lacking(directory: Path, processor: SentencePieceProcessor) -> list[str]:
    """A fine-tune's added tokens are stored beside the sentencepiece model, which lacks them."""
    size = processor.get_piece_size()
    return [
        f"{piece!r} at id {token}"
        for piece, token in dict(_added_tokens(directory)).items()
        if piece != IMAGE_PIECE
        and not (0 <= token < size and _as_typed(processor.id_to_piece(token)) == _as_typed(piece))
    ]


def _as_typed(piece: str) -> str:
    return piece.replace("\u2581", " ")


def _with_added_tokens(directory: Path) -> tuple[bytes, SentencePieceProcessor]:
    """The tokenizer.json beside a tokenizer.model, converted; it has to have all added tokens."""
    path = directory / JSON_FILE
    whole = has_file(path, TokenizerError)
    model = convert_tokenizer(path) if whole else _read_model(directory / MODEL_FILE)
    processor = _opened(model, path)
    if lacking := _lacking(directory, processor):
        _fail(
            f"{directory} has added tokens that its {MODEL_FILE} lacks, and {JSON_FILE} "
            f"{'too' if whole else 'is not there'}: {join_names(lacking)}",
            "load the tokenizer with transformers and save it again, which writes all of them to "
            f"{JSON_FILE}",
        )
    return model, processor


def _inner_image_id(processor: SentencePieceProcessor, config: PaliGemmaConfig) -> int | None:
    """The id of `<image>` where pieces follow it."""
    token = config.image_token_id
    inner = token < processor.get_piece_size() - 1 and processor.id_to_piece(token) == IMAGE_PIECE
    return token if inner else None


def _added_tokens(directory: Path) -> Iterator[tuple[str, int]]:
    """Pieces and ids in the files that transformers reads beside the sentencepiece model."""
    for name in (JSON_FILE, ADDED_FILE):
        path = directory / name
        if not has_file(path, TokenizerError):
            continue
        try:
            data = json.loads(path.read_bytes())
            if name == ADDED_FILE:
                yield from [(str(piece), int(token)) for piece, token in data.items()]
            else:
                entries = data.get("added_tokens") or []
                yield from [(str(entry["content"]), int(entry["id"])) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _fail(f"{path} is not a tokenizer that can be read", "download it again")


def _require_rows(processor: SentencePieceProcessor, config: PaliGemmaConfig) -> None:
    size, rows = processor.get_piece_size(), config.text.vocab_size
    if size > rows:
        _fail(
            f"tokenizer has {size} pieces for an embedding of {rows} rows",
            "use the tokenizer that was saved with these weights; a fine-tune with tokens of its "
            "own has to resize the table (resize_token_embeddings)",
        )


def _require_ends(
    processor: SentencePieceProcessor, config: PaliGemmaConfig, *, inner: bool
) -> None:
    """The ids that end an answer are those of pieces; `inner` where some follow `<image>`."""
    last = (processor.get_piece_size() if inner else _image_id(processor, config)) - 1
    for token in config.eos_token_ids:
        if token > last or token == config.image_token_id:
            _fail(
                f"the checkpoint names {token} as an id that ends an answer (eos_token_id of "
                f"{GENERATION_FILE} or {CONFIG_FILE}), and answers hold ids up to {last} without "
                f"{config.image_token_id}, the image's",
                "correct it, or use the tokenizer that was saved with these weights",
            )


def _token_ids(processor: SentencePieceProcessor, config: PaliGemmaConfig) -> TokenizerConfig:
    token_ids = TokenizerConfig(
        file=MODEL_FILE,
        pad_id=_piece_id(processor, CONTROL_PIECES["pad"]),
        eos_ids=_eos_ids(processor, config),
        bos_id=_piece_id(processor, CONTROL_PIECES["bos"]),
        newline_id=_piece_id(processor, "\n"),
        first_loc_id=_first_id(processor, LOC_PIECES),
        first_seg_id=_first_id(processor, SEG_PIECES),
        image_id=_image_id(processor, config),
    )
    _check_single_tokens(processor, (*LOC_PIECES, *SEG_PIECES, "\n"))
    if token_ids.bos_id != config.bos_token_id:
        _fail(
            f"tokenizer has <bos> at id {token_ids.bos_id}, config.json says {config.bos_token_id}",
            "use the tokenizer that was saved with these weights",
        )
    return token_ids


def _piece_id(processor: SentencePieceProcessor, piece: str) -> int:
    token: int = processor.piece_to_id(piece)
    if processor.id_to_piece(token) != piece:
        _fail(f"tokenizer has no piece {piece!r}", "use the tokenizer of a PaliGemma")
    return token


def _first_id(processor: SentencePieceProcessor, pieces: tuple[str, ...]) -> int:
    first = _piece_id(processor, pieces[0])
    for token, piece in enumerate(pieces, start=first):
        if (actual := _piece_id(processor, piece)) != token:
            _fail(
                f"tokenizer has {piece!r} at id {actual}, wanted {token} by the order",
                "use the tokenizer of a PaliGemma",
            )
    return first


def _check_single_tokens(processor: SentencePieceProcessor, pieces: tuple[str, ...]) -> None:
    for piece in pieces:
        if (ids := processor.encode(piece)) != [_piece_id(processor, piece)]:
            _fail(
                f"tokenizer encodes {piece!r} as ids {ids}, wanted one",
                "use the tokenizer of a PaliGemma",
            )


def _eos_ids(processor: SentencePieceProcessor, config: PaliGemmaConfig) -> tuple[int, ...]:
    """The ids that end an answer: those that the checkpoint names, `<eos>` where it names none."""
    return config.eos_token_ids or (_piece_id(processor, CONTROL_PIECES["eos"]),)


def _image_id(processor: SentencePieceProcessor, config: PaliGemmaConfig) -> int:
    """Return the first id that is never in an answer: `<image>`, or the first without a piece."""
    size: int = processor.get_piece_size()
    token = config.image_token_id
    last = token == size - 1 and processor.id_to_piece(token) == IMAGE_PIECE
    if token < size and not last:
        _fail(
            f"config.json has the image token at id {token}, which is "
            f"{processor.id_to_piece(token)!r} in a tokenizer of {size} pieces",
            "use the tokenizer that was saved with these weights",
        )
    return min(token, size)


def _fail(problem: str, advice: str) -> NoReturn:
    raise TokenizerError(f"{problem}; {advice}")
