"""Which added tokens `tokenizers` matches in a text, and how sentencepiece writes them.

The rules are those of tokenizers' AddedVocabulary: a token that is not `normalized` is matched in
the text as it was typed, the others in the text after its normalizer; special tokens are matched
like any other. Knows nothing of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tokenizers import AddedToken, Tokenizer

from paligemma_edge.export.tokenizer.probe_texts import LOC_PIECES, SEG_PIECES

IMAGE_PIECE = "<image>"
_SPACE = "\u2581"  # how both libraries write a blank within a piece
_NEVER_TYPED = frozenset(("<pad>", "<eos>", "<bos>", "<unk>", IMAGE_PIECE))
_LOCATIONS = frozenset((*LOC_PIECES, *SEG_PIECES))


@dataclass(frozen=True)
class AddedPieces:
    """A tokenizer's added tokens.

    Attributes:
        named: All of them, by id: the name in the vocabulary.
        matched: Those that are matched in a text, by id: the piece as sentencepiece writes it.
            A name with U+2581 that is not normalized is none of them: it would be matched in a
            text that holds U+2581 itself, never in one with blanks.
        own: Texts of those that the fine-tune or Gemma brings, without `<loc>` and `<seg>`.
        unlike: Those that are matched in a way that sentencepiece has not.
        literal: Words with U+2581 that are matched where a text holds that sign itself.
    """

    named: Mapping[int, str]
    matched: Mapping[int, str]
    own: tuple[str, ...]
    unlike: tuple[str, ...]
    literal: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Those of a tokenizer; control tokens and `<image>` are matched nowhere in a prompt."""
        added: Mapping[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        named = {token: str(entry.content) for token, entry in added.items()}
        typed = {token: entry for token, entry in added.items() if named[token] not in _NEVER_TYPED}
        forms = {token: _form(entry, tokenizer) for token, entry in typed.items()}
        matched = {token: form for token, form in forms.items() if form is not None}
        own = [named[token] for token in matched if named[token] not in _LOCATIONS]
        unlike = [named[t] for t, e in typed.items() if e.single_word or e.lstrip or e.rstrip]
        literal = [n for t, form in forms.items() if form is None and (n := named[t]).strip(_SPACE)]
        return cls(named, matched, tuple(own), tuple(unlike), tuple(literal))


def _form(token: AddedToken, tokenizer: Tokenizer) -> str | None:
    content = str(token.content)
    if token.normalized and tokenizer.normalizer is not None:
        content = str(tokenizer.normalizer.normalize_str(content))
    elif _SPACE in content:
        return None
    return content.replace(" ", _SPACE)
