import dataclasses
import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PaliGemmaProcessor

from paligemma_edge.runtime.errors import PromptError, TokenizerError
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream

pb: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
CHECKPOINT = Path(__file__).parents[3] / "samples/shapes/checkpoint"
MODEL = CHECKPOINT / "tokenizer.model"
SIZE = 2152
CONFIG = TokenizerConfig(
    file="tokenizer.model",
    pad_id=0,
    eos_ids=(1,),
    bos_id=2,
    newline_id=5,
    first_loc_id=1000,
    first_seg_id=2024,
    image_id=SIZE,
)
PROMPTS = [
    "caption en",
    "detect red circle ; blue square",
    "segment the small star",
    "answer en how many shapes are there?",
    "Where is the cow standing?",
    "  two  spaces   in a row ",
    "line one\nline two\n\nline four",
    "caption <loc0000><loc0511><loc1023><loc0007>",
    "<seg000><seg127> and <loc0012>word",
    "<loc1024><seg128><loc12> are no tokens",
    "naïve café, Straße, 日本語, العربية, עברית",
    "emoji 😀👩\u200d👩\u200d👧 and \u0301combining",
    "tab\there, nul \0, bell \a, \u2028line separator, nbsp\u00a0.",
    "▁ is a space",
    "0123456789 3.14 1,000",
    "x" * 300,
]


@cache
def encoder() -> PromptEncoder:
    return PromptEncoder(MODEL, CONFIG)


@cache
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL))


@cache
def processor() -> Any:  # noqa: ANN401 - untyped there
    return PaliGemmaProcessor.from_pretrained(CHECKPOINT)


def reference_ids(prompt: str, num_images: int = 1) -> tuple[int, ...]:
    image = np.zeros((4, 4, 3), np.uint8)
    inputs = processor()(text="<image>" * num_images + prompt, images=[image] * num_images)
    (ids,) = inputs["input_ids"]
    image_tokens = num_images * 64
    assert ids[:image_tokens] == [SIZE] * image_tokens
    return tuple(ids[image_tokens:])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_ids_are_those_of_transformers(prompt: str) -> None:
    assert encoder().encode(prompt, 1) == reference_ids(prompt)


words = st.sampled_from(["a", "cow", " ", "\n", "x y", "<loc0001>", "<seg005>", "ö", "日", "<"])


@settings(max_examples=150)
@given(st.lists(words | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join))
def test_the_ids_of_any_text_are_those_of_transformers(text: str) -> None:
    assert encoder().encode(text, 1) == reference_ids(text)


def test_several_images_need_no_other_text_ids() -> None:
    assert encoder().encode("caption en", 2) == reference_ids("caption en", 2)


def test_the_ids_are_bos_text_newline() -> None:
    ids = encoder().encode("caption en", 1)
    assert (ids[0], ids[-1]) == (CONFIG.bos_id, CONFIG.newline_id)
    assert encoder().decode(ids) == "caption en\n"


@pytest.mark.parametrize("name", ["<bos>", "<eos>", "<pad>", "<unk>"])
def test_control_tokens_in_a_text_are_plain_text(name: str) -> None:
    ids = encoder().encode(f"a {name} b", 1)
    assert not set(ids[1:]) & {CONFIG.bos_id, *CONFIG.eos_ids, CONFIG.pad_id, 3}
    assert encoder().decode(ids) == f"a {name} b\n"


def test_locations_and_codes_are_whole_tokens() -> None:
    names = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
    ids = encoder().encode("".join(names), 1)
    assert ids[1:-1] == tuple(range(CONFIG.first_loc_id, SIZE))
    assert encoder().decode(ids[1:-1]) == "".join(names)


@pytest.mark.parametrize("prompt", ["<image><bos>cap en", "<bos>cap en", "<image>cap en"])
def test_a_bos_at_the_start_is_the_only_one(prompt: str) -> None:
    assert encoder().encode(prompt, 1) == encoder().encode("cap en", 1)


@pytest.mark.parametrize("count", [1, 2])
def test_leading_markers_are_dropped_when_their_number_fits(count: int) -> None:
    assert encoder().encode("<image>" * count + "cap en", count) == encoder().encode("cap en", 9)
    kept = encoder().encode("<image>" * count + " cap en", count)
    assert kept == encoder().encode(" cap en", count) == reference_ids(" cap en", count)


@pytest.mark.parametrize(
    ("prompt", "num_images"),
    [
        ("<image>cap en", 0),
        ("<image>cap en", 2),
        ("<image><image>cap en", 1),
        ("cap en<image>", 1),
        ("<image> <image>cap en", 2),
        ("<image>cap <image> en", 2),
    ],
)
def test_other_markers_are_refused(prompt: str, num_images: int) -> None:
    with pytest.raises(PromptError, match="leave the markers out"):
        encoder().encode(prompt, num_images)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(PromptError, match="half a character"):
        encoder().encode("caption \ud800", 1)


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(PromptError, match="is a list, wanted a text"):
        encoder().encode(["caption en"], 1)  # type: ignore[arg-type]


def test_control_ids_have_no_text() -> None:
    (a,) = pieces().encode("a")
    assert encoder().decode([2, 0, a, 1, 3, SIZE, SIZE + 1, 10**9, -1, a]) == "aa"


def test_a_leading_space_is_kept() -> None:
    assert encoder().decode(pieces().encode(" cow")) == " cow"


@settings(max_examples=150)
@given(st.lists(words | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join))
def test_the_ids_of_a_continuation_are_those_of_transformers(text: str) -> None:
    ids = encoder().continuation(text)
    assert list(ids) == processor().tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoder().decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("text", ["<bos>", "a <eos> b", "<pad><unk>", "<image>", "<<image>>"])
def test_in_a_continuation_control_tokens_and_the_marker_are_spelt_out(text: str) -> None:
    for one in (encoder(), with_an_image_piece()):
        ids = one.continuation(text)
        assert not set(ids) & {CONFIG.bos_id, *CONFIG.eos_ids, CONFIG.pad_id, 3}
        assert max(ids) < SIZE
        assert one.decode(ids) == text


def test_in_a_continuation_locations_and_codes_are_whole_tokens() -> None:
    assert encoder().continuation("<loc0000><loc1023><seg000>") == (1000, 2023, 2024)
    assert encoder().continuation("") == ()


def test_a_continuation_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match=r"^the text of an answer holds half a character"):
        encoder().continuation("\ud800")


def test_the_vocabulary_is_the_bytes_of_every_token() -> None:
    vocabulary = encoder().vocabulary
    assert list(vocabulary) == [encoder().token_bytes(token) for token in range(SIZE)]
    assert {vocabulary[token] for token in (0, 1, 2, 3)} == {b""}
    assert vocabulary[1000] == b"<loc0000>"
    assert all(vocabulary[4:])
    assert encoder().vocabulary is vocabulary
    assert len(with_an_image_piece().vocabulary) == SIZE


def test_what_is_made_of_a_tokenizer_is_made_once() -> None:
    made = []

    def count(one: PromptEncoder) -> int:
        made.append(one)
        return len(made)

    one, other = PromptEncoder(MODEL, CONFIG), PromptEncoder(MODEL, CONFIG)
    assert [one.once(count), one.once(count), other.once(count), one.once(count)] == [1, 1, 2, 1]
    assert made == [one, other]
    assert one.config == CONFIG


anything = st.lists(st.integers(-3, SIZE + 20) | st.integers(6, 265), max_size=30)


@settings(deadline=None)
@given(anything)
def test_text_of_any_ids_is_that_of_sentencepiece(ids: list[int]) -> None:
    readable = [i for i in ids if 4 <= i < SIZE]
    assert encoder().decode(ids) == pieces().decode(readable)


@settings(deadline=None)
@given(anything)
def test_a_stream_adds_up_to_the_text(ids: list[int]) -> None:
    stream = TextStream(encoder())
    pushed = [stream.push(token) for token in ids]
    assert "".join(pushed) + stream.finish() == encoder().decode(ids)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_text_goes_there_and_back(text: str) -> None:
    ids = pieces().encode(text)
    assert encoder().decode(ids) == text.replace("▁", " ")
    assert encoder().decode(ids) == processor().tokenizer.decode(ids, skip_special_tokens=True)


def test_a_stream_holds_back_an_unfinished_character() -> None:
    ids = pieces().encode("😀")
    assert len(ids) == 4
    stream = TextStream(encoder())
    assert [stream.push(token) for token in ids] == ["", "", "", "😀"]
    assert stream.finish() == ""


def test_a_stream_that_ends_within_a_character_shows_that_it_does() -> None:
    stream = TextStream(encoder())
    pushed = [stream.push(token) for token in pieces().encode("😀")[:3]]
    assert pushed == ["", "", ""]
    assert stream.finish() == "\ufffd" * 3


def test_streams_do_not_share_what_they_hold_back() -> None:
    one, other = TextStream(encoder()), TextStream(encoder())
    one.push(pieces().encode("😀")[0])
    assert other.push(pieces().encode("a")[0]) == "a"


def test_bytes_and_path_are_the_same_model() -> None:
    from_bytes = PromptEncoder(MODEL.read_bytes(), CONFIG)
    assert from_bytes.encode("caption en", 1) == encoder().encode("caption en", 1)
    assert PromptEncoder(os.fspath(MODEL), CONFIG).decode([1000]) == "<loc0000>"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad_id", 3),
        ("bos_id", 7),
        ("newline_id", 6),
        ("first_loc_id", 999),
        ("image_id", 2153),
    ],
)
def test_facts_that_do_not_fit_are_refused(field: str, value: int) -> None:
    changed = TokenizerConfig(**(dataclasses.asdict(CONFIG) | {field: value}))
    with pytest.raises(TokenizerError, match=r"does not fit the bundle: id .* wanted '") as caught:
        PromptEncoder(MODEL, changed)
    assert "\n" not in str(caught.value)


def changed_model(**changes: bool) -> bytes:
    model = pb.ModelProto.FromString(MODEL.read_bytes())
    for name, value in changes.items():
        setattr(model.normalizer_spec, name, value)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", ["add_dummy_prefix", "remove_extra_whitespaces"])
def test_a_model_that_changes_spaces_is_refused(name: str) -> None:
    assert PromptEncoder(changed_model(), CONFIG)
    with pytest.raises(TokenizerError, match="comes back as"):
        PromptEncoder(changed_model(**{name: True}), CONFIG)


def with_type(token: int, kind: int) -> bytes:
    model = pb.ModelProto.FromString(MODEL.read_bytes())
    model.pieces[token].type = kind
    return bytes(model.SerializeToString())


def test_a_model_that_splits_locations_is_refused() -> None:
    with pytest.raises(TokenizerError, match="become ids"):
        PromptEncoder(with_type(1000, pb.ModelProto.SentencePiece.NORMAL), CONFIG)


def test_a_model_whose_control_tokens_are_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="'<bos>' is plain text"):
        PromptEncoder(with_type(2, pb.ModelProto.SentencePiece.USER_DEFINED), CONFIG)


def with_an_image_piece() -> PromptEncoder:
    model = pb.ModelProto.FromString(MODEL.read_bytes())
    kind = pb.ModelProto.SentencePiece.USER_DEFINED
    model.pieces.append(pb.ModelProto.SentencePiece(piece="<image>", score=0.0, type=kind))
    return PromptEncoder(bytes(model.SerializeToString()), CONFIG)


def test_a_model_with_an_image_piece_of_its_own_fits() -> None:
    own = with_an_image_piece()
    assert own.decode([SIZE]) == ""
    assert own.encode("<image>cap en", 1) == encoder().encode("cap en", 1)


@pytest.mark.parametrize("data", [b"", b"not a model", MODEL.read_bytes()[:1000]])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=f"^found {len(data)} bytes .*wanted"):
        PromptEncoder(data, CONFIG)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"missing\.model: cannot read"):
        PromptEncoder(tmp_path / "missing.model", CONFIG)


def test_a_token_that_ends_an_answer_has_no_text() -> None:
    (end,) = encoder().continuation(" red")
    ended = PromptEncoder(MODEL, dataclasses.replace(CONFIG, eos_ids=(1, end)))
    assert encoder().decode([*encoder().continuation(" blue"), end]) == " blue red"
    assert ended.decode([*encoder().continuation(" blue"), end]) == " blue"
    assert ended.encode("detect red", 1) == encoder().encode("detect red", 1)


def replaced(old: bytes, new: bytes) -> bytes:
    data = MODEL.read_bytes()
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def test_a_piece_that_is_not_utf8_is_one_line() -> None:
    """sentencepiece reads it, and python's decoder is the first to fail."""
    with pytest.raises(TokenizerError, match="piece of id 1000 is not UTF-8"):
        PromptEncoder(replaced(b"<loc0000>", b"<loc\xff000>"), CONFIG)
    damaged = PromptEncoder(replaced(b"<loc0777>", b"<loc\xff777>"), CONFIG)
    with pytest.raises(TokenizerError, match="piece of id 1777 is not UTF-8") as caught:
        _ = damaged.vocabulary
    assert str(caught.value).isprintable()
