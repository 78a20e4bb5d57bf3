"""Text to token ids and back, as PaliGemma's processor does it.

Knows the tokenizer and its special ids. Knows only the number of images: image positions are not
ids here, since the features of the images come before the text.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from paligemma_edge.runtime.contract import LOC_COUNT, SEG_COUNT
from paligemma_edge.runtime.errors import PromptError, TokenizerError
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.text.prompt_prefix import IMAGE_MARKER, split_prefix

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# More than any model can hold; a longer text would take seconds to tokenize before it is refused.
MAX_CHARACTERS = 200_000
_SPACE = "\u2581"  # how sentencepiece writes a space within a piece
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how the error handler decodes a stray byte
_PROBE = " a  b\n"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_IN_MARKER = re.compile("(?<=<)(?=image>)")

T = TypeVar("T")


class PromptEncoder:
    """A tokenizer whose ids were checked against the bundle's config.

    `<loc0000>`..`<loc1023>` and `<seg000>`..`<seg127>` are single tokens in both directions.
    Control tokens cannot be written in a text: `<bos>`, `<eos>` and `<pad>` are split like words,
    but for the `<bos>` that a prompt may begin with.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, config: TokenizerConfig) -> None:
        """Read a sentencepiece model from its path or bytes, TokenizerError if it does not fit."""
        self._pieces = _load(model)
        self._config = config
        self._made: dict[Callable[[PromptEncoder], Any], Any] = {}
        self._check_pieces()
        self._check_exactness()

    @property
    def config(self) -> TokenizerConfig:
        """The special ids."""
        return self._config

    def encode(self, prompt: str, num_images: int) -> tuple[int, ...]:
        """Ids of `<bos>`, the prompt and a newline, as transformers' `PaliGemmaProcessor` has them.

        The prompt is encoded as it is typed, together with the newline, and may be empty. At its
        start `<image>` markers are dropped when there is one for each image, and so is a `<bos>`
        after them, which that processor would double. PromptError if the prompt cannot be used.
        """
        text = _without_prefix(_utf8(prompt, "prompt"), num_images)
        ids: list[int] = self._pieces.encode(f"{text}\n")
        return (self._config.bos_id, *ids)

    def continuation(self, text: str) -> tuple[int, ...]:
        """Ids of a text within an answer, as in training; PromptError if it is not Unicode.

        `<loc>` and `<seg>` are single tokens; `<image>` and control tokens are split like words.
        """
        parts = _IN_MARKER.split(_utf8(text, "text of an answer"))
        return tuple(token for part in parts for token in self._pieces.encode(part))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, with `<loc>` and `<seg>`; control tokens, ends and `<image>` have none.

        Any ids are accepted. A byte that is not part of a UTF-8 character becomes U+FFFD.
        """
        stream = TextStream(self)
        return "".join([*map(stream.push, ids), stream.finish()])

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token, a part of a character where the tokenizer fell back to bytes.

        Tokens that end an answer are no part of its text.
        """
        return b"" if token in self._config.eos_ids else self._piece_bytes(token)

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """`token_bytes` of every token that an answer can have, `image_id` of them."""
        return tuple(self.token_bytes(token) for token in range(self._config.image_id))

    def once(self, make: Callable[[PromptEncoder], T]) -> T:
        """The result of `make(self)`, computed on the first call and kept with the tokenizer.

        `make` must be the same object each time, not a function that is defined for each call.
        """
        if make not in self._made:
            self._made[make] = make(self)
        value: T = self._made[make]
        return value

    def _piece_bytes(self, token: int) -> bytes:
        if not 0 <= token < min(self._config.image_id, self._pieces.get_piece_size()):
            return b""
        if self._pieces.is_control(token) or self._pieces.is_unknown(token):
            return b""
        piece = self._piece(token)
        if not self._pieces.is_byte(token):
            return piece.replace(_SPACE, " ").encode()
        if (byte := _BYTE.fullmatch(piece)) is None:
            _refuse(f"id {token} is {piece!r}, wanted a byte as '<0x41>'")
        return bytes.fromhex(byte[1])

    def _piece(self, token: int) -> str:
        try:
            piece: str = self._pieces.id_to_piece(token)
        except UnicodeDecodeError:
            _refuse(f"the piece of id {token} is not UTF-8")
        return piece

    def _check_pieces(self) -> None:
        size = self._pieces.get_piece_size()
        for token, wanted in _known_pieces(self._config).items():
            piece = self._piece(token) if 0 <= token < size else None
            beyond = wanted == IMAGE_MARKER and token == size
            if piece != wanted and not beyond:
                _refuse(f"id {token} is {piece!r}, wanted {wanted!r}")
        config = self._config
        for token in (config.pad_id, config.bos_id):
            if not self._pieces.is_control(token):
                _refuse(f"{self._piece(token)!r} is plain text, wanted a control token")

    def _check_exactness(self) -> None:
        pieces = map(self._piece_bytes, self._pieces.encode(_PROBE))
        returned = b"".join(pieces).decode("utf-8", "replace")
        if returned != _PROBE:
            _refuse(f"{_PROBE!r} comes back as {returned!r}")
        config = self._config
        wanted = [config.first_loc_id, config.first_seg_id + SEG_COUNT - 1, config.newline_id]
        ids: list[int] = self._pieces.encode(f"<loc0000><seg{SEG_COUNT - 1}>\n")
        if ids != wanted:
            _refuse(f"<loc>, <seg> and newline become ids {ids}, wanted {wanted}")


class TextStream:
    """Text of one answer, token by token: complete characters are returned at once."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")

    def push(self, token: int) -> str:
        """Text that is now complete; bytes of an unfinished character are held back."""
        return _readable(self._decoder.decode(self._encoder.token_bytes(token)))

    def finish(self) -> str:
        """Text of the bytes that are still held back: U+FFFD for each."""
        return _readable(self._decoder.decode(b"", final=True))


def _readable(text: str) -> str:
    return _NOT_UTF8.sub("\ufffd", text)


def _load(model: str | os.PathLike[str] | bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    data = model if isinstance(model, bytes) else _read(Path(model))
    try:
        pieces = SentencePieceProcessor(model_proto=data) if data else None
    except (RuntimeError, UnicodeDecodeError):  # the latter of the library's own message
        pieces = None
    if pieces is None:
        raise TokenizerError(
            f"found {len(data)} bytes that are not a sentencepiece model, wanted PaliGemma's "
            "tokenizer.model; export the bundle again"
        )
    return pieces


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot read the tokenizer ({error.strerror}); export the bundle again"
        ) from None


def _known_pieces(config: TokenizerConfig) -> dict[int, str]:
    return {
        config.pad_id: "<pad>",
        config.bos_id: "<bos>",
        config.newline_id: "\n",
        config.first_loc_id: "<loc0000>",
        config.first_loc_id + LOC_COUNT - 1: f"<loc{LOC_COUNT - 1}>",
        config.first_seg_id: "<seg000>",
        config.first_seg_id + SEG_COUNT - 1: f"<seg{SEG_COUNT - 1}>",
        config.image_id: IMAGE_MARKER,
    }


def _refuse(problem: str) -> NoReturn:
    raise TokenizerError(
        f"the tokenizer does not fit the bundle: {short_line(problem)}; export the bundle again "
        "with the tokenizer of its checkpoint"
    )


def _utf8(text: str, name: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"the {name} is a {type(text).__name__}, wanted a text")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"the {name} has {len(text)} characters, wanted at most {MAX_CHARACTERS}; "
            f"shorten the {name}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(
            f"the {name} holds half a character (a lone surrogate), wanted Unicode text; "
            "decode it as UTF-8"
        ) from None
    return text


def _without_prefix(prompt: str, num_images: int) -> str:
    markers, text = split_prefix(prompt)
    if IMAGE_MARKER in text:
        raise PromptError(
            "the prompt has an <image> marker after its start, but images come before "
            "the text; leave the markers out"
        )
    if markers not in (0, num_images):
        raise PromptError(
            f"the prompt has {markers} <image> markers for {num_images} images; "
            "leave the markers out, or write one for each image"
        )
    return text
