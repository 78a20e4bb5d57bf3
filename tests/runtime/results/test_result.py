import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
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
    assert answer.score == pytest.approx(math.log(answer.probabilities[answer.text]))
    assert answer.probabilities[answer.text] == max(answer.probabilities.values())
    assert json.loads(json.dumps(answer.to_json(), allow_nan=False))["log_probs"] == values


def test_shares_are_ratios_of_likelihoods() -> None:
    answer = choice({"cat": math.log(0.06), "dog": math.log(0.03), "owl": math.log(0.01)})
    assert answer.probabilities == pytest.approx({"cat": 0.6, "dog": 0.3, "owl": 0.1})


def test_a_choice_may_be_all_but_impossible() -> None:
    values = {"yes": -1e6, "no": -1e6 - 2000}
    assert choice(values).probabilities == {"yes": 1.0, "no": 0.0}
    assert choice(values).score == 0
    assert choice(values, "no").score == -2000


def test_a_choice_is_its_text() -> None:
    answer = choice({"yes": -1.0, "no": -2.0})
    assert str(answer) == "yes"
    assert choice({"only": -9.0}).probabilities == {"only": 1.0}
    assert answer.to_json() == {
        "prompt": "which?",
        "text": "yes",
        "score": answer.score,
        "log_probs": {"yes": -1.0, "no": -2.0},
        "probabilities": answer.probabilities,
    }


def test_words_are_their_text() -> None:
    words = TextResult(prompt="caption en", text="a cat", score=-0.5, truncated=True)
    assert str(words) == "a cat"
    assert words.to_json() == {
        "prompt": "caption en",
        "text": "a cat",
        "score": -0.5,
        "truncated": True,
    }
    assert words == TextResult(prompt="caption en", text="a cat", score=-0.5, truncated=True)


@given(results())
def test_a_mask_is_what_lies_inside_of_the_pasted_one(answer: ObjectResult) -> None:
    for one in answer:
        soft, mask = one.soft_mask, one.mask
        if one.decoded is None:
            assert soft is None and mask is None
            continue
        assert soft is not None and mask is not None
        assert np.array_equal(soft, paste_mask(one.decoded, one.box, WIDTH, HEIGHT))
        assert np.array_equal(mask, inside(soft))
        assert soft.shape == (HEIGHT, WIDTH)
        assert soft.dtype == np.float32 and mask.dtype == np.bool_


@given(results())
def test_corners_are_those_of_the_box_x_first(answer: ObjectResult) -> None:
    for one in answer:
        x0, y0, x1, y1 = one.xyxy
        assert (y0, x0, y1, x1) == one.box.pixels(WIDTH, HEIGHT)


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
    one = detection(decoded=disc(), score=-0.123456)
    assert repr(one) == "Detection(label='cat', score=-0.123, xyxy=(6, 10, 36, 30), masked=True)"
    assert repr(detection("it's", score=-0.5)).startswith('Detection(label="it\'s", score=-0.5, ')
    assert repr(result([one], truncated=True)) == (
        "ObjectResult(prompt='detect cat ; dog', score=-0.25, truncated=True, "
        f"width=60, height=40, objects=[{one!r}])"
    )
    assert repr(result()).endswith("score=-0.25, width=60, height=40, objects=[])")
