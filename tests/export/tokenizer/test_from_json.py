"""A tokenizer.json of Gemma's structure: white space, added tokens, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer

from paligemma_edge.export.checkpoint.config import parse_config
from paligemma_edge.export.tokenizer.from_json import convert_tokenizer
from paligemma_edge.export.tokenizer.read import read_tokenizer
from paligemma_edge.runtime.errors import TokenizerError
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.gemma_tokenizer import CONTROL, SIZE, added_token, gemma_tokenizer

Pair = tuple[Tokenizer, SentencePieceProcessor]
Json = dict[str, Any]
SMALL = 3_000
LOCATIONS = (*(f"<loc{i:04d}>" for i in range(1024)), *(f"<seg{i:03d}>" for i in range(128)))


def write(path: Path, data: Json) -> Path:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def as_paligemma_has_it(path: Path) -> Tokenizer:
    """With the tokens that transformers' PaliGemmaProcessor adds to what it reads."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    tokenizer.add_tokens(list(LOCATIONS))
    return tokenizer


@pytest.fixture(scope="module")
def small() -> Json:
    return gemma_tokenizer(SMALL)


@pytest.fixture(scope="module")
def pair(small: Json, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = write(tmp_path_factory.mktemp("small") / "tokenizer.json", small)
    processor = SentencePieceProcessor(model_proto=convert_tokenizer(path))
    return as_paligemma_has_it(path), processor


def test_a_tokenizer_of_gemmas_size_is_converted(tmp_path: Path) -> None:
    """It is compared with the original on all probe texts while it is converted."""
    path = write(tmp_path / "tokenizer.json", gemma_tokenizer())
    config = parse_config({"model_type": "paligemma", "image_token_index": SIZE})
    tokenizer = read_tokenizer(path, config)
    ids = tokenizer.config
    assert (ids.newline_id, ids.first_loc_id, ids.first_seg_id) == (108, 256_000, 257_024)
    assert ids.image_id == SIZE
    encoder = PromptEncoder(tokenizer.model_bytes, ids)
    # 16 and 16 blanks, as tokenizers has it with the real vocabulary, and no blank for the word.
    (c,) = encoder.continuation("C")
    assert encoder.continuation(" " * 32 + "C") == (153, 153, c)
    assert encoder.continuation("\n" * 62) == (138, 138)  # these are matched as added tokens


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\u00a0", "\u3000", "\r\n", "\u200b", "\u0085"])
def test_runs_of_white_space_have_the_ids_of_tokenizers(pair: Pair, space: str) -> None:
    original, converted = pair
    for length in (*range(1, 70), 93, 124, 200):
        for text in (f"{space * length}C", f"C{space * length}C", f"the cat{space * length}"):
            assert converted.encode(text) == ids_of(original, text), (space, length)


SPACES = st.sampled_from([" ", "\t", "\n", "\u00a0", "\u3000", "\r"])
RUNS = st.builds(lambda space, count: space * count, SPACES, st.integers(1, 70))
WORDS = st.sampled_from(
    ["the", "cat", "C", "<loc0001>", "<seg127>", "<table>", "<unused5>", "é", ";"]
)


@given(st.lists(RUNS | WORDS, max_size=8).map("".join))
def test_mixed_white_space_has_the_ids_of_tokenizers(pair: Pair, text: str) -> None:
    original, converted = pair
    assert converted.encode(text) == ids_of(original, text)
    assert converted.decode(converted.encode(text)) == text


def with_token(data: Json, piece: str, **flags: bool) -> Json:
    """Gemma's `<unused7>` renamed, as fine-tunes do that add no row to the tables."""
    token = data["model"]["vocab"]["<unused7>"]
    vocabulary = {p: t for p, t in data["model"]["vocab"].items() if t != token} | {piece: token}
    added = [entry for entry in data["added_tokens"] if entry["id"] != token]
    return {
        **data,
        "model": {**data["model"], "vocab": vocabulary},
        "added_tokens": [*added, added_token(token, piece, **flags)],
    }


@pytest.mark.parametrize("flags", [{}, {"normalized": True}, {"special": True}])
@pytest.mark.parametrize("piece", ["<answer>", "<an answer>", " <x>", "cat", "\t\t", "答え"])
def test_an_added_token_is_matched_as_in_tokenizers(
    tmp_path: Path, small: Json, piece: str, flags: dict[str, bool]
) -> None:
    path = write(tmp_path / "tokenizer.json", with_token(small, piece, **flags))
    original, converted = as_paligemma_has_it(path), convert_tokenizer(path)
    processor = SentencePieceProcessor(model_proto=converted)
    for text in (piece, f"the{piece}cat", f" {piece} ", f"{piece}{piece}", f"concat {piece}\n"):
        ids = ids_of(original, text)
        assert processor.encode(text) == ids
        assert processor.decode(ids) == text


def test_control_tokens_cannot_be_typed(tmp_path: Path, small: Json) -> None:
    path = write(tmp_path / "tokenizer.json", small)
    processor = SentencePieceProcessor(model_proto=convert_tokenizer(path))
    for piece in (*CONTROL, "<image>"):
        assert len(processor.encode(piece)) > 1


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip"])
def test_a_token_that_sentencepiece_cannot_match_is_named(
    tmp_path: Path, small: Json, flag: str
) -> None:
    path = write(tmp_path / "tokenizer.json", with_token(small, "<answer>", **{flag: True}))
    with pytest.raises(
        TokenizerError, match=r"matches '<answer>' as a word .* nor rstrip"
    ) as error:
        convert_tokenizer(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("piece", ["\u2581foo", "foo\u2581bar", "<\u2581>"])
def test_a_token_with_the_sign_for_a_blank_is_as_in_tokenizers_or_named(
    tmp_path: Path, small: Json, piece: str
) -> None:
    path = write(tmp_path / "tokenizer.json", with_token(small, piece))
    assert len(ids_of(as_paligemma_has_it(path), piece)) == 1
    with pytest.raises(TokenizerError) as caught:
        convert_tokenizer(path)
    assert f"matches {piece!r} in a text that holds U+2581 itself" in str(caught.value)
    path = write(tmp_path / "tokenizer.json", with_token(small, piece, normalized=True))
    processor = SentencePieceProcessor(model_proto=convert_tokenizer(path))
    for text in (piece, piece.replace("\u2581", " "), f"a{piece}b"):
        assert processor.encode(text) == ids_of(as_paligemma_has_it(path), text)


def keep(data: Json) -> Json:
    return data


def two_spaces_at_once(data: Json) -> Json:
    return {**data, "normalizer": {"type": "Replace", "pattern": {"String": "  "}, "content": " "}}


def without_long_runs(data: Json) -> Json:
    """Runs of blanks that merges do not make in this order."""
    model = data["model"]
    return {**data, "model": {**model, "merges": [*model["merges"][400:], *model["merges"][:400]]}}


@pytest.mark.parametrize(
    ("change", "fails"), [(keep, False), (two_spaces_at_once, True), (without_long_runs, False)]
)
def test_a_converted_tokenizer_is_equal_or_refused(
    tmp_path: Path, small: Json, change: Callable[[Json], Json], fails: bool
) -> None:
    path = write(tmp_path / "tokenizer.json", change(small))
    if fails:
        with pytest.raises(TokenizerError, match="its sentencepiece model as"):
            convert_tokenizer(path)
        return
    original = as_paligemma_has_it(path)
    processor = SentencePieceProcessor(model_proto=convert_tokenizer(path))
    for length in range(1, 70):
        text = f"the{' ' * length}cat"
        assert processor.encode(text) == ids_of(original, text)
