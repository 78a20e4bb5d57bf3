"""What becomes of an answer: objects with class ids, masks or why there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.results.build import (
    IN_WORDS,
    REPEATED,
    WITHOUT_CODES,
    WITHOUT_MASKS,
    decoded_masks,
    object_result,
)
from paligemma_edge.runtime.results.generation import Generation, decode_with_offsets
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject
from paligemma_edge.runtime.text.tasks import Task
from tests.helpers.object_form import CORNERS
from tests.helpers.sample_tokenizer import EOS, encoder

BOX = "<loc0100><loc0200><loc0300><loc0400>"
MASK = "<seg007>" * 16


def answered(text: str, prompt: str = "segment cat", **given: Any) -> ObjectResult:  # noqa: ANN401
    """What a model's text becomes; the loop notes boxes where they begin."""
    tokens = [*encoder().continuation(text), EOS]
    decoded, offsets = decode_with_offsets(encoder(), tokens)
    boxes = [
        place
        for place, token in enumerate(tokens)
        if token in CORNERS and (not place or tokens[place - 1] not in CORNERS)
    ]
    generation = Generation(
        prompt=prompt,
        text=decoded,
        token_ids=tuple(tokens),
        log_probs=(-0.5,) * len(tokens),
        char_offsets=offsets,
        box_log_probs=dict.fromkeys(boxes, -0.125),
        finish_reason="stop",
        seconds={},
    )
    decode = given.pop("decode_masks", decode_masks)
    return object_result(Task.of(prompt), generation, (60, 40), decode, **given)


def decode_masks(codes: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.ones((len(codes), 64, 64), np.float32)


def test_words_that_a_grammar_let_pass_hold_no_objects() -> None:
    text = f"there is none {BOX} cat"
    held = answered(text, constrained=True)
    assert (held.objects, held.notes, held.text) == ((), (IN_WORDS,), text)
    free = answered(text)
    assert ([one.label for one in free], free.notes) == (["cat"], (WITHOUT_CODES,))
    assert free[0].mask is None


@pytest.mark.parametrize("constrained", [True, False])
def test_no_answer_has_neither_objects_nor_notes(constrained: bool) -> None:
    nothing = answered("", constrained=constrained)
    assert (nothing.objects, nothing.notes) == ((), ())


def test_an_object_that_comes_twice_is_told() -> None:
    twice = answered(f"{BOX} cat ; {BOX} dog ; {BOX} cat", "detect cat ; dog")
    assert ([one.label for one in twice], twice.notes) == (["cat", "dog", "cat"], (REPEATED,))
    assert answered(f"{BOX} cat ; {BOX} dog", "detect cat ; dog").notes == ()


def test_boxes_alone_are_what_a_model_gave_that_was_asked_for_masks() -> None:
    mixed = answered(f"{BOX}{MASK} cat ; {BOX} dog", constrained=True)
    assert [one.decoded_mask is not None for one in mixed] == [True, False]
    assert mixed.notes == (WITHOUT_CODES,)
    assert answered(f"{BOX}{MASK} cat").notes == ()
    assert answered(f"{BOX} cat", "detect cat").notes == ()
    assert answered(f"{BOX}{MASK} cat", decode_masks=None).notes == (WITHOUT_MASKS,)


def test_class_ids_count_what_the_prompt_asks_for_or_the_classes_given() -> None:
    text = f"{BOX} dog ; {BOX} cat ; {BOX} owl"
    asked = answered(text, "detect cat ; dog")
    assert asked.classes == ("cat", "dog")
    assert [one.class_id for one in asked] == [1, 0, -1]
    given = answered(text, "detect cat ; dog", classes=["owl", "dog"])
    assert given.classes == ("owl", "dog")
    assert [one.class_id for one in given] == [1, -1, 0]
    everything = answered(text, "detect all classes")
    assert (everything.classes, everything[0].class_id) == ((), -1)


def test_an_object_is_as_sure_as_that_it_begins_and_has_its_label() -> None:
    one, two = answered(f"{BOX}{MASK} cat ; {BOX} dog")
    label, separator = (len(encoder().continuation(text)) for text in (" cat", " ; "))
    assert one.log_prob == -0.125 - 0.5 * label
    assert two.log_prob == -0.125 - 0.5 * (separator + len(encoder().continuation(" dog")))


def test_masks_belong_to_their_objects(shapes_loaded: LoadedModel) -> None:
    decode_masks, rng = shapes_loaded.engine.decode_masks, np.random.default_rng(0)
    box = Box(0.25, 0.5, 0.75, 1.0)
    codes = [tuple(map(int, rng.integers(0, 128, 16))) for _ in range(2)]
    objects = [
        ParsedObject("a", box, codes[0]),
        ParsedObject("b", box, None),
        ParsedObject("c", box, codes[1]),
    ]
    first, none, last = decoded_masks(objects, decode_masks)
    assert none is None
    assert first is not None and last is not None
    assert first.shape == (64, 64)
    assert not np.array_equal(first, last)
    (alone,) = decoded_masks(objects[2:], decode_masks)
    assert alone is not None and np.array_equal(alone, last)
    assert decoded_masks([], decode_masks) == []
