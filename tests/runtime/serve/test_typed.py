"""The typed endpoints answer as the model alone does, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from paligemma_edge import PaliGemma, TopSampling
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.serve.typed_answers import ANSWERS, PromptAnswers
from tests.helpers.typed_app import (
    MODEL_ID,
    as_text,
    asked,
    error_of,
    messages,
    running_app,
    streamed,
)

LABELS = ["circle", "purple star", "square"]
QUESTION = "what shape is yellow?"
PROMPTS = ["caption en", f"answer en {QUESTION}", "segment purple star", "detect circle ; star"]
# Each task with its fields, and the same call of the model alone.
CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "caption": ({}, lambda model, image: model.caption(image)),
    "ask": ({"question": QUESTION}, lambda model, image: model.ask(image, QUESTION)),
    "ocr": ({"max_new_tokens": 9}, lambda model, image: model.ocr(image, max_new_tokens=9)),
    "detect": (
        {"labels": LABELS, "label_set": "asked", "classes": ["star", "square"]},
        lambda model, image: model.detect(
            image, LABELS, labels="asked", classes=["star", "square"]
        ),
    ),
    "segment": ({"labels": LABELS}, lambda model, image: model.segment(image, LABELS)),
    "classify": (
        {"prompt": f"answer en {QUESTION}", "choices": ["star", "circle", "square"]},
        lambda model, image: model.classify(
            image, f"answer en {QUESTION}", ["star", "circle", "square"]
        ),
    ),
    "generate": (
        {"prompt": "segment star", "constrained": False},
        lambda model, image: model.run(image, "segment star", constrained=False),
    ),
}


@pytest.fixture(scope="module")
def client(shapes_bundle: Path) -> Iterator[TestClient]:
    with running_app(shapes_bundle) as app:
        yield TestClient(app, "http://localhost")


@pytest.fixture(scope="module")
def images(shapes_images: Path) -> list[Path]:
    return sorted(shapes_images.glob("[0-9]*.png"))


def check_alike(answer: dict[str, Any], result: TextResult | ObjectResult | ChoiceResult) -> None:
    """Every value of the result is in the answer, to the last bit; nothing else is of a result."""
    expected = {"notes": [], **result.to_dict()}
    if isinstance(result, ObjectResult):
        del expected["width"], expected["height"]
    of_answers = {"id", "model", "image", "task", "timings", "usage", "index", "seed"}
    assert {name: value for name, value in answer.items() if name not in of_answers} == expected


@pytest.mark.parametrize("task", CALLS)
def test_an_answer_is_that_of_the_model_alone(
    client: TestClient, shapes_model: PaliGemma, images: list[Path], task: str
) -> None:
    fields, call = CALLS[task]
    for image in images[:4]:
        answer = asked(client, task, image, **fields)
        check_alike(answer, call(shapes_model, image))
        assert answer["task"] == task
        msgspec.convert(answer, ANSWERS[task], strict=True)  # type: ignore[index]


@pytest.mark.parametrize("task", CALLS)
def test_a_stream_ends_with_the_same_answer(
    client: TestClient, shapes_model: PaliGemma, images: list[Path], task: str
) -> None:
    fields, call = CALLS[task]
    result = call(shapes_model, images[0])
    start, *middle, answer, done = streamed(client, task, images[0], **fields)
    assert [start.name, answer.name, done.name, done.data] == ["start", "result", "done", {}]
    check_alike(answer.data, result)
    assert {name: answer.data[name] for name in start.data} == start.data
    texts = [one.data["text"] for one in middle if one.name == "token"]
    assert all(texts)
    assert "".join(texts) == ("" if isinstance(result, ChoiceResult) else result.text)
    found = [one.data for one in middle if one.name == "object"]
    objects = answer.data.get("objects", [])
    assert [one["object"] for one in found] == objects
    assert [one["number"] for one in found] == list(range(len(objects)))


def test_an_object_comes_before_the_text_that_follows_it(
    client: TestClient, images: list[Path]
) -> None:
    prompt, names = "detect star ; circle ; square ; triangle", []
    for image in images:
        names = [one.name for one in streamed(client, "generate", image, prompt=prompt)]
        if names.count("object") > 1:
            break
    assert "token" in names[names.index("object") :]


def test_an_answer_says_of_what_it_is_and_what_it_took(
    client: TestClient, images: list[Path]
) -> None:
    response = client.post("/v1/caption", json={"image": as_text(images[0])})
    answer = response.json()
    assert answer["id"] == response.headers["x-request-id"]
    assert answer["model"] == MODEL_ID
    assert answer["image"]["width"] == answer["image"]["height"] == 112
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > usage["prompt_tokens_details"]["image_tokens"] == 64
    assert set(answer["timings"]) == {
        *("queue", "preprocess", "vision", "projector", "prefill", "steps")
    }
    assert min(answer["timings"].values()) >= 0
    assert answer["timings"]["steps"] > 0


def test_an_image_is_sent_as_json_raw_or_in_a_form(client: TestClient, images: list[Path]) -> None:
    file = images[0].read_bytes()
    fields: dict[str, Any] = {
        "labels": LABELS,
        "max_new_tokens": 30,
        "min_confidence": 0.5,
        "constrained": False,
    }
    query = {**fields, "constrained": "false"}
    expected = asked(client, "detect", images[0], **fields)
    assert expected["objects"]
    sent = [
        client.post("/v1/detect", content=file, params=query, headers={"content-type": kind})
        for kind in (
            "image/png",
            "Image/JPEG; charset=x",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
        )
    ]
    form = {"image": ("a.png", file, "image/png")}
    sent += [
        client.post("/v1/detect", content=file, params=query),
        client.post("/v1/detect", files=form, data=query),
        client.post(
            "/v1/detect", json={"image": f"data:image/png;base64,{as_text(images[0])}", **fields}
        ),
    ]
    for response in sent:
        answer = response.json()
        different = {"id", "timings"}
        assert {k: v for k, v in answer.items() if k not in different} == {
            k: v for k, v in expected.items() if k not in different
        }


def test_an_image_is_asked_about_again_by_its_id(
    client: TestClient, shapes_model: PaliGemma, images: list[Path]
) -> None:
    image_id = asked(client, "caption", images[0])["image"]["id"]
    result = shapes_model.detect(images[0], LABELS)
    for response in (
        client.post("/v1/detect", json={"image": {"id": image_id}, "labels": LABELS}),
        client.post("/v1/detect", params={"image_id": image_id, "labels": LABELS}),
        client.post("/v1/detect", files={"image_id": (None, image_id)}, data={"labels": LABELS}),
    ):
        check_alike(response.json(), result)
        assert response.json()["image"] == {"id": image_id, "width": 112, "height": 112}


def test_an_id_that_is_not_known_is_told_so(client: TestClient, images: list[Path]) -> None:
    for image_id in ("img_0", "", "\0", "x" * 100_000, "../../etc/passwd"):
        response = client.post("/v1/ocr", json={"image": {"id": image_id}})
        error = error_of(response)
        assert (response.status_code, error["code"]) == (404, "image_not_found")
        assert (error["type"], error["param"]) == ("not_found_error", "image")


def test_many_prompts_are_answered_about_one_image(
    client: TestClient, shapes_model: PaliGemma, images: list[Path]
) -> None:
    answer = asked(client, "generate", images[0], prompts=PROMPTS)
    assert set(answer) == {"id", "model", "image", "results", "notes"}
    msgspec.convert(answer, PromptAnswers, strict=True)
    for prompt, one in zip(PROMPTS, answer["results"], strict=True):
        check_alike(one, shapes_model.run(images[0], prompt))
        assert not {"id", "model", "image", "index"} & set(one)
    (only,) = asked(client, "generate", images[0], prompts=PROMPTS[:1])["results"]
    check_alike(only, shapes_model.run(images[0], PROMPTS[0]))


def test_many_prompts_are_streamed_side_by_side(
    client: TestClient, shapes_model: PaliGemma, images: list[Path]
) -> None:
    events = streamed(client, "generate", images[0], prompts=PROMPTS)
    assert [events[0].name, events[-1].name] == ["start", "done"]
    for index, prompt in enumerate(PROMPTS):
        mine = [one for one in events[1:-1] if one.data["index"] == index]
        assert [one.name for one in mine].count("result") == 1
        assert mine[-1].name == "result"
        check_alike(mine[-1].data, shapes_model.run(images[0], prompt))
        text = "".join(one.data["text"] for one in mine if one.name == "token")
        assert text == mine[-1].data["text"]


def test_a_prompt_among_many_that_cannot_be_asked_is_named(
    client: TestClient, images: list[Path]
) -> None:
    body = {"image": as_text(images[0]), "prompts": ["caption en", "detect"]}
    for more in ({}, {"stream": True}):
        response = client.post("/v1/generate", json={**body, **more})
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "prompt_invalid")
        assert error["param"] == "prompts[1]"
    assert client.app.state.server.answering.scheduler.waiting == 0  # type: ignore[attr-defined]


def test_tokens_are_drawn_with_a_seed_that_is_told(
    client: TestClient, shapes_model: PaliGemma, images: list[Path]
) -> None:
    fields = {"prompt": "caption en", "temperature": 1.5, "top_p": 0.9, "top_k": 50}
    sampling = TopSampling(temperature=1.5, top_p=0.9, top_k=50, seed=7)
    answer = asked(client, "generate", images[0], **fields, seed=7)
    assert answer["seed"] == 7
    expected = shapes_model.generate(images[0], "caption en", sampling=sampling)
    assert (answer["text"], answer["log_prob"]) == (expected.text, expected.log_prob)
    drawn = asked(client, "generate", images[0], **fields)
    again = asked(client, "generate", images[0], **fields, seed=drawn["seed"])
    assert drawn["text"] == again["text"]
    assert "seed" not in asked(client, "generate", images[0], prompt="caption en", seed=7)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 2])
def test_any_temperature_is_answered(
    client: TestClient, images: list[Path], temperature: float
) -> None:
    assert asked(client, "generate", images[0], prompt="caption en", temperature=temperature)


def test_objects_of_little_confidence_are_left_out(client: TestClient, images: list[Path]) -> None:
    fields = {"labels": ["star", "circle", "square", "triangle"]}
    answers = [asked(client, "detect", image, **fields) for image in images[:8]]
    several = max(answers, key=lambda answer: len(answer["objects"]))
    confidences = sorted(one["confidence"] for one in several["objects"])
    assert len(confidences) > 1
    image = images[answers.index(several)]
    least = confidences[1]
    kept = [one for one in several["objects"] if one["confidence"] >= least]
    fewer = asked(client, "detect", image, **fields, min_confidence=least)
    assert fewer["objects"] == kept
    assert fewer["text"] == several["text"]
    events = streamed(client, "detect", image, **fields, min_confidence=least)
    found = [one.data for one in events if one.name == "object"]
    assert [one["object"] for one in found] == kept
    assert [one["number"] for one in found] == list(range(len(kept)))


def test_an_answer_that_is_cut_says_so(client: TestClient, images: list[Path]) -> None:
    answer = asked(client, "caption", images[0], max_new_tokens=1)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_a_model_is_named(client: TestClient, images: list[Path]) -> None:
    assert asked(client, "caption", images[0], model=MODEL_ID)["model"] == MODEL_ID
    response = client.post("/v1/caption", json={"image": as_text(images[0]), "model": "other"})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )


def test_a_time_limit_that_has_passed_is_told(client: TestClient, images: list[Path]) -> None:
    body = {"image": as_text(images[0]), "timeout": 1e-9}
    response = client.post("/v1/caption", json=body)
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline")
    assert response.headers["x-should-retry"] == "false"
    response = client.post("/v1/caption", json={**body, "stream": True})
    assert response.status_code == 200
    start, error = messages(response.text)
    assert (start.name, error.name) == ("start", "error")
    assert error.data["error"]["code"] == "deadline"
