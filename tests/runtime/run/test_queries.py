from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from paligemma_edge.runtime.errors import DeviceError, ImageError, PromptError
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.run.queries import (
    Failure,
    InOrder,
    Query,
    QueryResult,
    Result,
    answer_sources,
)
from paligemma_edge.runtime.run.sources import Source

PROMPTS = ("caption en", "caption de")


def sources(count: int) -> list[Source]:
    return [Source(f"{number}.png", f"{number}.png") for number in range(count)]


def read(source: Source) -> ImageBatch:
    if source.name in ("1.png", "2.png"):
        raise ImageError(f"{source.name}: damaged")
    return ImageBatch(np.zeros((1, 3, 2, 2), np.float32), 30, 20)


def result(query: Query) -> TextResult:
    text = f"{query.source.name}, {query.prompt}"
    return TextResult(prompt=query.prompt, text=text, log_prob=-0.5, finish_reason="stop")


def in_pairs(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
    """As a loop of two slots would: the later one of each pair is complete first."""
    iterator = iter(queries)
    while pair := [query for _, query in zip(range(2), iterator, strict=False)]:
        yield from ((query, result(query)) for query in reversed(pair))


def run(
    count: int,
    prompts: Sequence[str] = PROMPTS,
    depth: int = 2,
    **more: Any,  # noqa: ANN401
) -> list[QueryResult]:
    taken: list[QueryResult] = []
    given: dict[str, Any] = {"read": read, "answer": in_pairs, "on_result": taken.append, **more}
    answer_sources(sources(count), prompts, depth=depth, **given)
    return taken


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_every_prompt_is_answered_about_every_image_once(depth: int) -> None:
    taken = run(5, depth=depth)
    keys = [(one.source.name, one.prompt) for one in taken]
    assert sorted(keys) == sorted((f"{n}.png", prompt) for n in range(5) for prompt in PROMPTS)
    assert sorted(one.number for one in taken) == list(range(10))
    for one in taken:
        assert one.siblings == 2
        if isinstance(one.outcome, Failure):
            assert one.source.name in ("1.png", "2.png")
        else:
            assert one.outcome.text == f"{one.source.name}, {one.prompt}"
            assert one.size == (30, 20)


def test_a_record_holds_the_image_and_the_answer_or_the_error() -> None:
    answered, broken = (next(one for one in run(2) if one.number == n).record for n in (0, 2))
    assert answered == {
        "image": "0.png",
        "prompt": "caption en",
        "width": 30,
        "height": 20,
        "text": "0.png, caption en",
        "confidence": math.exp(-0.5),
        "log_prob": -0.5,
        "finish_reason": "stop",
    }
    assert broken == {"image": "1.png", "prompt": "caption en", "error": "1.png: damaged"}


def test_a_record_has_the_prompt_that_was_given() -> None:
    def tidied(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        for query in queries:
            yield query, dataclasses.replace(result(query), prompt="tidied")

    (answered,) = run(1, prompts=["caption  en"], answer=tidied)
    assert list(answered.record.items())[:2] == [("image", "0.png"), ("prompt", "caption  en")]


def test_masks_that_are_nan_or_infinite_are_one_image_s_failure() -> None:
    found = Detection(
        label="cat",
        log_prob=-1.0,
        xyxy_normalized=(0.2, 0.2, 0.8, 0.8),
        width=30,
        height=20,
        decoded_mask=np.full((64, 64), np.nan, np.float32),
    )
    outcome = ObjectResult(
        prompt="segment cat",
        text="",
        objects=(found,),
        classes=("cat",),
        log_prob=-1.0,
        finish_reason="stop",
        width=30,
        height=20,
    )
    broken = dataclasses.replace(run(1)[0], outcome=outcome)
    with pytest.raises(ImageError, match=r"0\.png: the mask decoder produced NaN or inf"):
        broken.record  # noqa: B018 - made when it is asked for


def test_what_is_done_is_neither_read_nor_answered() -> None:
    seen: list[str] = []

    def watched(source: Source) -> ImageBatch:
        seen.append(source.name)
        return read(source)

    done = {("0.png", prompt) for prompt in PROMPTS} | {("3.png", PROMPTS[0])}
    taken = run(4, done=done, read=watched)
    assert seen == ["1.png", "2.png", "3.png"]
    left = [one for one in taken if one.source.name == "3.png"]
    assert [(one.prompt, one.siblings) for one in left] == [(PROMPTS[1], 1)]


def test_one_image_is_read_once_for_all_prompts() -> None:
    images: list[ImageBatch] = []

    def watched(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        for query in queries:
            images.append(query.images)
            yield query, result(query)

    run(1, answer=watched)
    assert images[0] is images[1]


def test_an_error_that_is_not_an_image_s_ends_the_run() -> None:
    def fails(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        yield from in_pairs([next(iter(queries))])
        raise DeviceError("out of memory")

    taken: list[QueryResult] = []
    with pytest.raises(DeviceError):
        run(4, answer=fails, on_result=taken.append)
    assert len(taken) == 1


def test_answers_are_handed_on_in_order_and_none_is_left() -> None:
    given: list[int] = []
    taken = run(5)
    in_order = InOrder(lambda one: given.append(one.number))
    for one in taken:
        in_order(one)
    assert [one.number for one in taken] != sorted(one.number for one in taken)
    assert given == list(range(10))

    given.clear()
    in_order = InOrder(lambda one: given.append(one.number))
    for one in reversed(taken):
        if one.number:
            in_order(one)
    assert given == []
    in_order.flush()
    assert given == list(range(1, 10))


def test_a_prompt_that_is_refused_is_its_own_failure() -> None:
    refused = {PROMPTS[1]: PromptError("too long")}
    taken = sorted(run(1, refused=refused), key=lambda one: one.number)
    assert [isinstance(one.outcome, Failure) for one in taken] == [False, True]
    assert taken[1].record == {"image": "0.png", "prompt": PROMPTS[1], "error": "too long"}


def test_an_image_with_prompts_of_its_own_is_asked_those_alone() -> None:
    taken: list[QueryResult] = []
    own = [Source("a.png", "a.png", ("ocr",)), Source("a.png", "a.png", ("caption en",))]
    given: dict[str, Any] = {"read": read, "answer": in_pairs, "on_result": taken.append}
    answer_sources(own, [], depth=1, **given)
    assert sorted(one.prompt for one in taken) == ["caption en", "ocr"]


def test_a_record_says_what_answered_and_when_a_frame_was() -> None:
    taken: list[QueryResult] = []
    frame = Source("clip.mp4@000001.500s", "0.png", time=1.5)
    given: dict[str, Any] = {"read": read, "answer": in_pairs, "on_result": taken.append}
    made_by = {"variant": "cpu-int8", "adapter": "cats"}
    answer_sources([frame], PROMPTS[:1], depth=1, model=made_by, **given)
    assert list(taken[0].record) == [
        *("image", "prompt", "variant", "adapter", "width", "height"),
        *("text", "confidence", "log_prob", "finish_reason", "time"),
    ]
    assert taken[0].record["time"] == 1.5
    assert taken[0].record["variant"] == "cpu-int8"
