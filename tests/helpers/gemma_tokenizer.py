"""A tokenizer.json of the structure and size of PaliGemma's, with a vocabulary of its own.

As in the file on the Hub: 257,152 pieces and all merges that make them, runs of up to 31 newlines
and 31 blanks, HTML tags, `<unused0>` and the turns of a chat as added tokens that are not
normalized, bytes, and `<loc>` and `<seg>` as pieces that are no added tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

SIZE = 257_152
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")
_SPECIAL = (*CONTROL, "<start_of_turn>", "<end_of_turn>")
_LETTERS = "\u2581etaoinshrdlucmfwypvbgkqjxzC"
_OTHERS = "".join(
    chr(code) for code in (*range(33, 127), *range(0xC0, 0x100)) if chr(code) not in _LETTERS
)
_BLOCKS = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"]
_HEADINGS = (*(f"h{level}" for level in range(1, 7)), "blockquote")
_STYLES = ["strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
_TAGS = (_BLOCKS, _HEADINGS, _STYLES)
_RUNS = (*("\n" * n for n in range(1, 32)), *("\u2581" * n for n in range(2, 32)))
_OWN = (
    *("<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99))),
    *("<start_of_turn>", "<end_of_turn>", *_RUNS),
    *(f"<{end}{tag}>" for tags in _TAGS for end in ("", "/") for tag in tags),
)  # fmt: skip
_LOCATIONS = (*(f"<loc{i:04d}>" for i in range(1024)), *(f"<seg{i:03d}>" for i in range(128)))


def gemma_tokenizer(size: int = SIZE) -> dict[str, Any]:
    """The file's content; `<image>` is the id after the pieces."""
    pieces = [*itertools.islice(_pieces(), size - len(_LOCATIONS)), *_LOCATIONS]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    words = pieces[len(CONTROL) + len(_OWN) + 256 : -len(_LOCATIONS)]
    added = [added_token(token, pieces[token]) for token in range(len(CONTROL) + len(_OWN))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*added, added_token(size, "<image>", special=True)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": list(_merges((*_RUNS, *words), vocabulary.keys())),
        },
    }


def added_token(token: int, piece: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, **kinds, "special": piece in _SPECIAL, **flags}


def _pieces() -> Iterator[str]:
    yield from (*CONTROL, *_OWN)
    yield from (f"<0x{byte:02X}>" for byte in range(256))
    yield from _LETTERS + _OTHERS
    for length in itertools.count(1):
        yield from map("".join, itertools.product(_LETTERS, *[_LETTERS[1:]] * length))


def _merges(pieces: Iterable[str], known: Iterable[str]) -> Iterator[tuple[str, str]]:
    known = frozenset(known)
    for piece in pieces:
        for place in range(1, len(piece)):
            if piece[:place] in known and piece[place:] in known:
                yield piece[:place], piece[place:]
