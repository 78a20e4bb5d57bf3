import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.parse_answer import Box
from tests.helpers.detections import HEIGHT, NO_PIXELS, WIDTH, detection, disc, result, results

log_probs = st.dictionaries(
    st.text(max_size=5), st.floats(-1e9, 0), min_size=1, max_size=6
)  # of sums over long answers as well


def choice(values: dict[str, float], text: str | None = None) -> ChoiceResult:
    best = max(values, key=lambda name: values[name])
    return ChoiceResult(prompt="which?", text=best if text is None else text, log_probs=values)


@given(log_probs)
def test_the_shares_of_choices_make_up_one(values: dict[str, float]) -> None:
    answer = choice(values)
    assert list(answer.probabilities) == list(values)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.log_prob == pytest.approx(math.log(answer.probabilities[answer.text]))
    assert answer.probabilities[answer.text] == max(answer.probabilities.values())
    assert json.loads(answer.to_json())["log_probs"] == values


def test_shares_are_ratios_of_likelihoods() -> None:
    answer = choice({"cat": math.log(0.06), "dog": math.log(0.03), "owl": math.log(0.01)})
    assert answer.probabilities == pytest.approx({"cat": 0.6, "dog": 0.3, "owl": 0.1})


def test_a_choice_may_be_all_but_impossible() -> None:
    values = {"yes": -1e6, "no": -1e6 - 2000}
    assert choice(values).probabilities == {"yes": 1.0, "no": 0.0}
    assert choice(values).log_prob == 0
    assert choice(values, "no").log_prob == -2000


def test_a_choice_is_its_text() -> None:
    answer = choice({"yes": -1.0, "no": -2.0})
    assert str(answer) == "yes"
    assert choice({"only": -9.0}).probabilities == {"only": 1.0}
    assert answer.to_dict() == {
        "prompt": "which?",
        "text": "yes",
        "confidence": answer.confidence,
        "log_prob": answer.log_prob,
        "log_probs": {"yes": -1.0, "no": -2.0},
        "probabilities": answer.probabilities,
    }


def test_words_are_their_text() -> None:
    words = TextResult(prompt="caption en", text="a cat", log_prob=-0.5, finish_reason="length")
    assert str(words) == "a cat"
    assert words.to_dict() == {
        "prompt": "caption en",
        "text": "a cat",
        "confidence": math.exp(-0.5),
        "log_prob": -0.5,
        "finish_reason": "length",
    }
    assert words.to_rows() == [words.to_dict()] == [json.loads(words.to_json())]
    assert words == dataclasses.replace(words)


@given(results())
def test_a_mask_is_what_lies_inside_of_the_pasted_one(answer: ObjectResult) -> None:
    for one in answer:
        soft, mask = one.soft_mask, one.mask
        if one.decoded_mask is None:
            assert soft is None and mask is None
            continue
        assert soft is not None and mask is not None
        box = Box.from_xyxy(one.xyxy_normalized)
        assert np.array_equal(soft, paste_mask(one.decoded_mask, box, WIDTH, HEIGHT))
        assert np.array_equal(mask, inside(soft))
        assert soft.shape == (HEIGHT, WIDTH)
        assert soft.dtype == np.float32 and mask.dtype == np.bool_


@given(results())
def test_corners_are_those_of_the_box_x_first(answer: ObjectResult) -> None:
    for one in answer:
        x0, y0, x1, y1 = one.xyxy_normalized
        scaled = (x0 * WIDTH, y0 * HEIGHT, x1 * WIDTH, y1 * HEIGHT)
        assert one.xyxy == tuple(map(round, scaled))


def test_a_box_without_pixels_has_an_empty_mask() -> None:
    one = detection(box=NO_PIXELS, decoded=disc())
    assert one.xyxy == (54, 20, 6, 8)
    assert one.mask is not None and one.mask.shape == (HEIGHT, WIDTH) and not one.mask.any()


def test_a_result_is_a_sequence_of_its_objects() -> None:
    objects = (detection(), detection("dog"), detection("owl"))
    answer = result(objects)
    assert (tuple(answer), len(answer), answer[1], answer[-1]) == (objects, 3, *objects[1:])
    assert (str(answer), len(result())) == ("<loc0256> cat", 0)


def test_a_repr_is_short_and_tells_what_was_found() -> None:
    one = detection(decoded=disc(), log_prob=-0.123456)
    assert (
        repr(one) == "Detection(label='cat', confidence=0.884, xyxy=(6, 10, 36, 30), masked=True)"
    )
    assert repr(detection("it's")).startswith('Detection(label="it\'s", confidence=0.607, xyxy')
    assert repr(result([one], finish_reason="length")) == (
        "ObjectResult(prompt='detect cat ; dog', confidence=0.779, finish_reason='length', "
        f"width=60, height=40, objects=[{one!r}])"
    )
    assert repr(result()).endswith("finish_reason='stop', width=60, height=40, objects=[])")


def test_only_objects_that_the_model_is_sure_of_are_kept() -> None:
    sure, unsure = detection(log_prob=-0.6), detection(log_prob=-0.8)
    answer = result([unsure, sure, unsure])
    kept = answer.filter(min_confidence=0.5)
    assert kept.objects == (sure,)
    assert (kept.text, kept.log_prob, len(answer)) == (answer.text, answer.log_prob, 3)
    assert answer.filter(min_confidence=0).objects == answer.objects
    assert len(answer.filter(min_confidence=1)) == 0


@pytest.mark.parametrize("least", [-0.1, 1.1, math.nan, "0.5", None])
def test_a_least_confidence_is_a_share(least: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"min_confidence is .*, wanted a number from 0 to 1"):
        result().filter(min_confidence=least)
