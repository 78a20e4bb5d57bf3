"""The parser reads every answer that the grammar allows; the answers of training are allowed.

With labels of the model's own, the grammar changes no answer that is of the form.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_edge.runtime.engine.logits import HostRow
from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject, parse_answer
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.object_form import BLANKS, CODES, CORNERS, is_of_the_form
from tests.helpers.sample_tokenizer import CONFIG, EOS, IMAGE, LOC, MODEL, SEG, encoder, ids

pb: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
SEPARATOR = " ; "
Object = tuple[list[int], list[int], str]  # numbers of a box, codes, label


def walk(grammar: ObjectGrammar, seed: int, end: float) -> list[int]:
    """Tokens that the grammar allows, at random; the end the more likely the longer it goes."""
    random, state, tokens = np.random.default_rng(seed), grammar.start(encoder()), [0]
    while tokens[-1] != EOS:
        allowed = ids(state)
        stop = EOS in allowed and random.random() < end + len(tokens) / 400
        tokens.append(EOS if stop else int(random.choice(allowed)))
        state = state.after(tokens[-1])
    assert ids(state) == [EOS]
    return tokens[1:]


def after(grammar: ObjectGrammar, tokens: list[int]) -> State:
    """The state after tokens, all of which are allowed."""
    state = grammar.start(encoder())
    for place, token in enumerate(tokens):
        allowed = state.allowed
        assert allowed is not None
        known = allowed[token] if allowed.dtype == np.bool_ else token in allowed
        assert known, f"{encoder().decode(tokens[: place + 1])!r} is not allowed"
        state = state.after(token)
    return state


def objects_of(tokens: list[int], masks: bool) -> list[Object]:
    """The objects, read from the tokens themselves."""
    objects: list[Object] = []
    rest = tokens[:-1]
    while rest:
        corners, rest = [token - LOC for token in rest[:4]], rest[4:]
        count = 16 if masks else 0
        codes, rest = [token - SEG for token in rest[:count]], rest[count:]
        length = next((i for i, token in enumerate(rest) if token in CORNERS), len(rest))
        label, rest = encoder().decode(rest[:length]), rest[length:]
        assert label.endswith(SEPARATOR) if rest else ";" not in label
        objects.append((corners, codes, label.removesuffix(SEPARATOR).strip()))
    return objects


def written(objects: list[Object]) -> str:
    """An answer as training writes it."""
    return SEPARATOR.join(
        "".join([*(f"<loc{n:04}>" for n in box), *(f"<seg{n:03}>" for n in codes)])
        + (f" {label}" if label else "")
        for box, codes, label in objects
    )


def detections(objects: list[Object]) -> tuple[ParsedObject, ...]:
    return tuple(
        ParsedObject(
            label, Box.from_locations(box[0], box[1], box[2], box[3]), tuple(codes) or None
        )
        for box, codes, label in objects
    )


characters = st.characters(exclude_categories=["Cs"], exclude_characters=";<>▁")
odd_labels = st.sampled_from(
    [
        "red circle",
        "red",
        "red square",
        "naïve café",
        "日本語",
        "😀👩\u200d👧",
        '"7" o\'clock',
        "3.14",
    ]
) | st.text(characters, min_size=1, max_size=8).map(lambda text: " ".join(text.split())).filter(
    bool
)
label_sets = st.lists(odd_labels, min_size=1, max_size=5).map(tuple)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=200)
@given(label_sets, st.booleans(), seeds, st.sampled_from([0.0, 0.1, 0.5]))
def test_any_walk_is_parsed_as_the_objects_that_were_walked(
    labels: tuple[str, ...], masks: bool, seed: int, end: float
) -> None:
    tokens = walk(ObjectGrammar(labels, masks), seed, end)
    objects, answer = objects_of(tokens, masks), parse_answer(encoder().decode(tokens))
    assert answer.objects == detections(objects)
    assert answer.plain == ""
    for (y0, x0, y1, x1), codes, label in objects:
        assert 0 <= y0 < y1 <= 1023 and 0 <= x0 < x1 <= 1023
        assert len(codes) == 16 * masks and all(0 <= code < 128 for code in codes)
        assert label in labels


sides = (
    st.tuples(st.integers(0, 1023), st.integers(0, 1023)).map(sorted).filter(lambda s: s[0] < s[1])
)
boxes = st.tuples(sides, sides).map(lambda s: [s[0][0], s[1][0], s[0][1], s[1][1]])
sixteen = st.lists(st.integers(0, 127), min_size=16, max_size=16)


@settings(max_examples=200)
@given(st.data(), label_sets, st.booleans())
def test_whatever_training_writes_may_be_said(
    data: st.DataObject, labels: tuple[str, ...], masks: bool
) -> None:
    codes = sixteen if masks else st.just([])
    for allowed, names in ((labels, labels), (None, ("", *labels))):
        one = st.tuples(boxes, codes, st.sampled_from(names))
        objects = data.draw(st.lists(one, max_size=4))
        tokens = [*encoder().continuation(written(objects)), EOS]
        assert ids(after(ObjectGrammar(allowed, masks), tokens)) == [EOS]
        assert detections(objects_of(tokens, masks)) == detections(objects)


@pytest.mark.parametrize("labels", [None, ("cat",)])
@pytest.mark.parametrize("masks", [False, True])
def test_every_place_allows_what_the_format_says(
    labels: tuple[str, ...] | None, masks: bool
) -> None:
    grammar = ObjectGrammar(labels, masks)
    free = labels is None
    first = [*range(LOC + 1023), *range(LOC + 1024, IMAGE)] if free else [EOS, *CORNERS[:-1]]
    assert ids(after(grammar, [])) == first
    assert ids(after(grammar, [LOC + 7])) == [*range(LOC, LOC + 1023)]
    assert ids(after(grammar, [LOC + 7, LOC + 1022])) == [*range(LOC + 8, LOC + 1024)]
    assert ids(after(grammar, [LOC + 7, LOC + 1022, LOC + 9])) == [LOC + 1023]
    box = [LOC + 7, LOC + 1022, LOC + 9, LOC + 1023]
    after_box = ids(after(grammar, box))
    assert (after_box == [*CODES]) == (masks and not free)
    assert (SEG in after_box) == masks
    for count in range(1, 16 if masks else 1):
        assert ids(after(grammar, [*box, *[SEG + 5] * count])) == [*CODES]
    whole = [*box, *[SEG + 5] * (16 if masks else 0)]
    follow = set(ids(after(grammar, whole)))
    assert not follow & {*CODES}
    assert (EOS in follow) == (LOC in follow) == free
    for name in ["", " cat"] if free else [" cat"]:
        again = ids(after(grammar, [*whole, *encoder().continuation(name + SEPARATOR)]))
        assert {*again} - BLANKS == {*CORNERS[:-1], *([EOS] if free else [])}


def test_words_may_be_any_but_what_ends_a_label() -> None:
    state = after(ObjectGrammar(None, False), [LOC, LOC, LOC + 9, LOC + 9])
    for place in (state, state.after(encoder().continuation(" a")[0])):
        texts = {encoder().token_bytes(token) for token in ids(place) if token not in CORNERS}
        known = {text for text in encoder().vocabulary if text and b"<loc" not in text}
        assert texts - {b""} == {t for t in known if not set(t) & set(b"<>") and t.count(b";") < 2}


def said(grammar: ObjectGrammar, wanted: list[int], seed: int) -> list[int]:
    """What a model says that wants to say this; where it may not, it goes on at random."""
    random, tokens = np.random.default_rng(seed), list[int]()
    state = grammar.start(encoder())
    while EOS not in tokens and len(tokens) < 120:
        logits = random.normal(size=IMAGE + 8).astype(np.float32)
        if tokens == wanted[: len(tokens)]:
            logits[wanted[len(tokens)]] = 50
        else:
            logits[EOS] = 3
        row = HostRow(logits, IMAGE)
        tokens.append(select_token(Greedy(), row, state.allowed, len(tokens)))
        state = state.after(tokens[-1])
    return tokens


pieces = st.sampled_from(
    [
        "cat",
        " red",
        " ;",
        ";",
        " ; ",
        "; ",
        " ",
        "\n",
        "é",
        "日",
        "<",
        ">",
        "<loc",
        ".",
        "a;b",
    ]
)
any_box = boxes | st.lists(st.integers(0, 1023), min_size=4, max_size=4)
parts: Any = (
    pieces.map(lambda text: list(encoder().continuation(text)))
    | any_box.map(lambda box: [LOC + number for number in box])
    | sixteen.map(lambda codes: [SEG + code for code in codes])
    | st.integers(0, IMAGE - 1).map(lambda token: [token])
)
neat_parts: Any = st.tuples(
    boxes.map(lambda box: [LOC + number for number in box]),
    st.sampled_from(["", " ", "\n"]).map(lambda text: list(encoder().continuation(text))),
    st.just([]) | sixteen.map(lambda codes: [SEG + code for code in codes]),
    st.sampled_from(["", " ", " cat", "cat", " a\nb", " 日本 x"]).map(
        lambda text: list(encoder().continuation(text))
    ),
    st.sampled_from(["", " ; ", ";", "; ", " ;", " ;  "]).map(
        lambda text: list(encoder().continuation(text))
    ),
).map(lambda tokens: [token for part in tokens for token in part])
answers: Any = (
    st.lists(neat_parts, max_size=4) | st.lists(parts, max_size=8) | st.lists(neat_parts | parts)
).map(lambda listed: [*[t for part in listed for t in part if t != EOS][:100], EOS])


@settings(max_examples=200)
@given(answers, st.booleans(), seeds)
def test_an_answer_of_the_form_is_not_changed(answer: list[int], masks: bool, seed: int) -> None:
    constrained = said(ObjectGrammar(None, masks), answer, seed)
    if answer[0] == LOC + 1023:  # no box begins there
        assert constrained[0] != answer[0]
    elif answer[0] in CORNERS:
        assert (constrained == answer) == is_of_the_form(answer, masks)
    else:  # the end, or words
        assert constrained == answer
    if constrained[0] in CORNERS and constrained[-1] == EOS:
        assert is_of_the_form(constrained, masks)


@settings(max_examples=100)
@given(st.lists(neat_parts, max_size=3), seeds)
def test_an_answer_of_the_form_is_read_as_a_whole(listed: list[list[int]], seed: int) -> None:
    tokens = [token for part in listed for token in part] + [EOS]
    assert is_of_the_form(tokens, True)
    assert said(ObjectGrammar(None, True), tokens, seed) == tokens
    answer = parse_answer(encoder().decode(tokens))
    assert len(answer.objects) == len(listed)
    starts = [start for start, _ in answer.spans]
    for end, start in zip([0, *(end for _, end in answer.spans)], [*starts, None], strict=True):
        assert answer.text[end:start].strip(" \n;") == ""


def test_what_is_no_object_is_said_to_its_end() -> None:
    for words in (" no cat", "<loc", "<seg000>", "\n", "cat <loc0001><loc0002><loc0003><loc0004>"):
        tokens = [*encoder().continuation(words), EOS]
        assert said(ObjectGrammar(None, False), tokens, 0) == tokens
    state = ObjectGrammar(None, True).start(encoder()).after(encoder().continuation(" no")[0])
    assert state.allowed is None
    assert ids(state.after(EOS)) == [EOS]


def without_piece(text: str) -> PromptEncoder:
    """The tokenizer with a piece that no text holds in the place of this one."""
    model = pb.ModelProto.FromString(MODEL.read_bytes())
    (piece,) = (piece for piece in model.pieces if piece.piece == text)
    piece.piece = "\ue000\ue001"
    return PromptEncoder(bytes(model.SerializeToString()), CONFIG)


@pytest.mark.parametrize("label", ["", " cat", " two words"])
def test_a_separator_may_begin_with_a_token_that_words_have_too(label: str) -> None:
    other = without_piece("▁;")
    assert len(other.continuation(SEPARATOR)) == 3
    state = ObjectGrammar(None, False).start(other)
    for token in other.continuation(f"<loc0001><loc0002><loc0003><loc0004>{label}{SEPARATOR}"):
        assert token in ids(state)
        state = state.after(token)
    assert {*ids(state)} - BLANKS == {EOS, *CORNERS[:-1]}


def test_labels_are_kept_once_with_single_blanks() -> None:
    grammar = ObjectGrammar((" red\n circle", "cat ", "red circle"), False)
    assert grammar == ObjectGrammar(("red circle", "cat"), False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), r"the labels are \(\), wanted names such as"),
        ("cat", "the labels are 'cat', wanted names such as"),
        (("cat", " \n"), r"a label is ' \\n', wanted names such as"),
        (("cat", 5), "a label is 5, wanted names such as"),
        (("a;b",), "the label 'a;b' holds ';', '<' or '>'.*; leave them out"),
        (("<loc0001>",), "the label '<loc0001>' holds"),
        (("a>",), "the label 'a>' holds"),
    ],
)
def test_a_label_that_no_answer_can_hold_is_refused(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(PromptError, match=f"^{message}") as caught:
        ObjectGrammar(labels, False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a▁b", "'a▁b' cannot be an answer, since the tokenizer turns it into 'a b'"),
        ("a\ud800", "the text of an answer holds half a character"),
    ],
)
def test_a_label_that_the_tokenizer_cannot_write_is_refused(label: str, message: str) -> None:
    with pytest.raises(PromptError, match=f"^{message}"):
        ObjectGrammar((label,), False).start(encoder())


def test_asked_labels_do_not_need_the_vocabulary() -> None:
    fresh = PromptEncoder(MODEL, CONFIG)
    ObjectGrammar(("cat",), True).start(fresh)
    assert "vocabulary" not in vars(fresh)
    ObjectGrammar(None, True).start(fresh)
    assert "vocabulary" in vars(fresh)
