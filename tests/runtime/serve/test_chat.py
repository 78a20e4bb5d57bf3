"""Chat completions over a socket, as openai-python asks for them and reads them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from PIL import Image
from pydantic import BaseModel

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.logits import Logits
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.serve import sse
from paligemma_edge.runtime.serve.sse import with_pings
from tests.helpers.chat import data_url, openai_client, url_of
from tests.helpers.serving import SECONDS, Running, running_server

CAPTION, SEGMENT = "caption en", "segment purple star"


@pytest.fixture(scope="module")
def running(shapes_bundle: Path) -> Iterator[Running]:
    with running_server(shapes_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def address(running: Running) -> str:
    return url_of(running)


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai_client(running) as client:
        yield client


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


@pytest.fixture(scope="module")
def asked(image: Path) -> list[Any]:
    return messages(image, CAPTION)


def messages(image: Path | bytes, prompt: str) -> list[Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(image), "detail": "high"}},
        {"type": "text", "text": prompt},
    ]
    return [{"role": "user", "content": parts}]


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> ChatCompletion:  # noqa: ANN401
    answer: ChatCompletion = client.chat.completions.create(
        model=options.pop("model", "shapes"), messages=messages, **options
    )
    return answer


def text(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


def own(answer: ChatCompletion) -> dict[str, Any]:
    """What OpenAI's form has no field for."""
    extra = answer.choices[0].message.model_extra
    assert extra is not None
    fields: dict[str, Any] = extra["paligemma"]
    return fields


def stream(client: openai.OpenAI, messages: list[Any], **options: Any) -> list[Any]:  # noqa: ANN401
    return list(
        client.chat.completions.create(model="shapes", messages=messages, stream=True, **options)
    )


def joined(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.mark.parametrize(
    "prompt",
    [CAPTION, "answer en what shape is yellow?", "detect circle ; purple star", SEGMENT, "ocr"],
)
def test_the_answer_is_that_of_the_model_alone(
    client: openai.OpenAI, shapes_model: PaliGemma, image: Path, prompt: str
) -> None:
    alone = shapes_model.run(image, prompt)
    answer = ask(client, messages(image, prompt))
    assert text(answer) == alone.text
    assert answer.choices[0].finish_reason == alone.finish_reason == "stop"
    assert own(answer)["confidence"] == alone.confidence
    assert joined(stream(client, messages(image, prompt))) == alone.text
    if isinstance(alone, ObjectResult):
        assert own(answer)["objects"] == alone.to_dict()["objects"]
        assert own(answer)["classes"] == list(alone.classes)
    else:
        assert "objects" not in own(answer)


def test_the_form_of_an_answer(
    client: openai.OpenAI, shapes_model: PaliGemma, image: Path, asked: list[Any]
) -> None:
    raw = client.chat.completions.with_raw_response.create(model="shapes", messages=asked)
    answer = raw.parse()
    request_id = raw.headers["x-request-id"]
    assert answer.id == f"chatcmpl-{request_id.removeprefix('req_')}"
    assert (answer.object, answer.model) == ("chat.completion", "shapes")
    generation = shapes_model.generate(image, CAPTION)
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.completion_tokens == len(generation.token_ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = usage.prompt_tokens_details.model_extra or {}
    image_tokens = getattr(usage.prompt_tokens_details, "image_tokens", details)
    assert image_tokens == shapes_model.bundle.manifest.model.image_tokens
    with Image.open(image) as opened:
        assert own(answer)["images"][0]["width"] == opened.width
    assert set(own(answer)["timings"]) >= {"queue", "prefill", "steps", "preprocess"}
    assert own(answer)["notes"] == []
    body = json.loads(raw.content)
    assert list(body["choices"][0]) == ["index", "message", "logprobs", "finish_reason"]


def test_the_form_of_a_stream(address: str, asked: list[Any]) -> None:
    body = {"messages": asked, "stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    lines = [line for line in answer.text.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {(c["id"], c["object"], c["model"]) for c in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", "shapes")
    }
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["usage"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    ended = chunks[-2]
    assert ended["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert set(ended["paligemma"]) >= {"images", "timings", "notes"}
    whole = httpx.post(f"{address}/v1/chat/completions", json={"messages": asked}).json()
    assert chunks[-1]["usage"] == whole["usage"]


def test_a_stream_without_usage_has_none(client: openai.OpenAI, asked: list[Any]) -> None:
    chunks = stream(client, asked)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert len([c for c in chunks if c.choices[0].delta.content]) > 3


def test_logprobs(
    client: openai.OpenAI, shapes_model: PaliGemma, image: Path, asked: list[Any]
) -> None:
    generation = shapes_model.generate(image, CAPTION)
    answer = ask(client, asked, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == generation.text
    raw = b"".join(bytes(one.bytes or ()) for one in logprobs.content)
    assert raw.decode() == generation.text
    assert [one.logprob for one in logprobs.content] == list(generation.log_probs[:-1])
    for one in logprobs.content:
        assert len(one.top_logprobs) == 3
        assert one.token == one.top_logprobs[0].token  # the likeliest is chosen
        assert one.logprob == one.top_logprobs[0].logprob
    streamed = stream(client, asked, logprobs=True, top_logprobs=3)
    told = [
        one
        for chunk in streamed
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert told == logprobs.content
    without = ask(client, asked, logprobs=True).choices[0].logprobs
    assert without is not None and without.content is not None
    assert {len(one.top_logprobs) for one in without.content} == {0}


def test_a_stop_text_ends_the_answer_and_its_logprobs(
    client: openai.OpenAI, asked: list[Any]
) -> None:
    answer = ask(client, asked, stop=[" yellow", "unheard"], logprobs=True)
    assert text(answer) == "a small purple star, a small"
    assert answer.choices[0].finish_reason == "stop"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == text(answer)
    chunks = stream(client, asked, stop=" yellow", logprobs=True)
    assert joined(chunks) == text(answer)
    told = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert told == logprobs.content


def test_a_limit_cuts_the_answer(client: openai.OpenAI, asked: list[Any]) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, asked, **{name: 2})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None and answer.usage.completion_tokens == 2


def test_more_tokens_than_fit_are_lowered_and_told(client: openai.OpenAI, asked: list[Any]) -> None:
    answer = ask(client, asked, max_tokens=100_000)
    assert answer.choices[0].finish_reason == "stop"
    (note,) = own(answer)["notes"]
    assert "max_tokens was lowered from 100000 to" in note


def test_sampling_is_repeated_by_its_seed(client: openai.OpenAI, asked: list[Any]) -> None:
    first = ask(client, asked, temperature=2, max_tokens=12)
    seed = own(first)["seed"]
    again = ask(client, asked, temperature=2, max_tokens=12, seed=seed)
    assert text(again) == text(first)
    assert own(again)["seed"] == seed
    assert "seed" not in own(ask(client, asked, max_tokens=1))


def test_structured_outputs(client: openai.OpenAI, asked: list[Any]) -> None:
    choice = ask(client, asked, extra_body={"structured_outputs": {"choice": ["cats", "dogs"]}})
    assert text(choice) in ("cats", "dogs")
    digits = ask(client, asked, extra_body={"structured_outputs": {"regex": "[0-9]{3}"}})
    assert len(text(digits)) == 3 and text(digits).isdigit()


def test_options_of_objects(client: openai.OpenAI, shapes_model: PaliGemma, image: Path) -> None:
    prompt = "detect circle ; purple star"
    sure = shapes_model.run(image, prompt)
    assert isinstance(sure, ObjectResult) and len(sure) == 1
    options = {"classes": ["red", "purple star"], "min_confidence": 0.0}
    answer = ask(client, messages(image, prompt), extra_body={"paligemma": options})
    assert [one["class_id"] for one in own(answer)["objects"]] == [1]
    answer = ask(client, messages(image, prompt), extra_body={"paligemma": {"min_confidence": 1}})
    assert own(answer)["objects"] == []
    assert text(answer) == sure.text
    free = shapes_model.run(image, prompt, constrained=False)
    answer = ask(client, messages(image, prompt), extra_body={"paligemma": {"constrained": False}})
    assert text(answer) == free.text


def test_several_images_of_one_prompt(
    client: openai.OpenAI, shapes_model: PaliGemma, shapes_images: Path, image: Path
) -> None:
    other = shapes_images / "01.png"
    alone = shapes_model.encode(image, other).generate(CAPTION, max_new_tokens=20)
    both = messages(image, CAPTION)
    both[0]["content"].insert(1, {"type": "image_url", "image_url": {"url": data_url(other)}})
    answer = ask(client, both, max_tokens=20)
    assert text(answer) == alone.text
    assert len(own(answer)["images"]) == 2
    both[0]["content"][-1]["text"] = SEGMENT
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, both)
    assert refused.value.code == "too_many_images"


def test_a_follow_up_question_is_about_the_image_before(
    client: openai.OpenAI, shapes_model: PaliGemma, image: Path
) -> None:
    question = "answer en what shape is yellow?"
    talk = [
        {"role": "system", "content": "You are brief."},
        *messages(image, CAPTION),
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": question},
    ]
    answer = ask(client, talk)
    assert text(answer) == shapes_model.run(image, question).text
    assert len(own(answer)["notes"]) == 2


class OneOf(BaseModel):
    shape: Literal["star", "circle"]


class Free(BaseModel):
    caption: str


class Count(BaseModel):
    count: int


class Truth(BaseModel):
    purple: bool


@pytest.mark.parametrize("model", [OneOf, Free, Count, Truth])
def test_a_schema_is_answered_by_json_of_it(
    client: openai.OpenAI, image: Path, model: type[BaseModel]
) -> None:
    question = messages(image, "answer en what shape is yellow?")
    parsed = client.chat.completions.parse(model="shapes", messages=question, response_format=model)
    assert isinstance(parsed.choices[0].message.parsed, model)
    with client.chat.completions.stream(
        model="shapes", messages=question, response_format=model
    ) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.parsed == parsed.choices[0].message.parsed


def test_json_of_a_caption_holds_the_caption(
    client: openai.OpenAI, shapes_model: PaliGemma, image: Path, asked: list[Any]
) -> None:
    parsed = client.chat.completions.parse(model="shapes", messages=asked, response_format=Free)
    alone = shapes_model.run(image, CAPTION)
    assert isinstance(alone, TextResult)
    assert parsed.choices[0].message.parsed == Free(caption=alone.text)


def test_models(client: openai.OpenAI, address: str) -> None:
    (model,) = client.models.list()
    assert model.id == "shapes"
    assert model.model_extra == {
        "root": "shapes",
        "parent": None,
        "max_model_len": 512,
    } | {name: None for name in model.model_extra or {} if name == "shutdown_date"}
    assert client.models.retrieve("shapes").id == "shapes"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-9")
    assert unknown.value.code == "model_not_found"
    assert httpx.get(f"{address}/models").json() == httpx.get(f"{address}/v1/models").json()


def test_an_address_without_a_version_works_too(address: str, asked: list[Any]) -> None:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        assert text(ask(client, asked))


def test_errors_are_openai_pythons(client: openai.OpenAI, image: Path, asked: list[Any]) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, asked, model="gpt-9")
    error = missing.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "not_found_error")
    assert error.request_id is not None
    for options, param in (
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"n": 2}, "n"),
        ({"temperature": 9}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"structured_outputs": {"regex": "(?=a)"}}}, None),
        ({"extra_body": {"structured_outputs": {"regex": "[0-9"}}}, None),
        ({"extra_body": {"structured_outputs": {"regex": "((a{1000}){1000}){1000}"}}}, None),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, asked, **options)
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages(image, "word " * 600))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages(image, "x" * 300_000))
    assert refused.value.code == "prompt_invalid"
    for prompt in ("detect ;", "<image><image>ocr", "ocr <image>"):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, messages(image, prompt))
        assert refused.value.code == "prompt_invalid"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("http://example.com/a.png", "image_url_invalid"),
        ("https://127.0.0.1/a.png", "image_url_invalid"),
        ("file:///etc/passwd", "image_url_invalid"),
        ("/etc/passwd", "image_url_invalid"),
        ("", "image_url_invalid"),
        ("data:image/png,abc", "image_url_invalid"),
        ("data:image/png;base64,", "image_base64_invalid"),
        ("data:image/png;base64,####", "image_base64_invalid"),
        ("data:image/png;base64,AAA", "image_base64_invalid"),
        ("data:image/png;base64,AAAA", "image_unreadable"),
        ("data:text/html;base64,AAAA", "image_type_invalid"),
    ],
)
def test_what_is_no_image(client: openai.OpenAI, sent: str, code: str) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": sent}},
        {"type": "text", "text": CAPTION},
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": parts}])
    assert refused.value.code == code
    assert refused.value.param == "messages[0].content[0].image_url.url"


def test_a_damaged_image_is_named(client: openai.OpenAI, image: Path) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages(image.read_bytes()[:200], CAPTION))
    assert refused.value.code == "image_unreadable"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_what_is_no_json_by_its_type(address: str, content_type: str) -> None:
    answer = httpx.post(
        f"{address}/v1/chat/completions", content=b"{}", headers={"content-type": content_type}
    )
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"messages":[]}', b'{"messages":NaN}', b"null", b"5"],
)
def test_broken_json_is_an_error_in_one_form(address: str, body: bytes) -> None:
    answer = httpx.post(
        f"{address}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_a_stream_stays_alive_while_there_is_nothing_to_say(
    address: str, client: openai.OpenAI, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model waits until the client has seen a ping; openai-python reads over them."""
    seen, step = threading.Event(), Stepper.step

    def held(stepper: Stepper, tokens: Sequence[int]) -> Logits:
        assert seen.wait(SECONDS)
        return step(stepper, tokens)

    monkeypatch.setattr(Stepper, "step", held)
    monkeypatch.setattr(sse, "with_pings", partial(with_pings, seconds=0.01))
    body = {"messages": asked, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": ping"
        seen.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert joined(stream(client, asked))


def test_a_failure_midway_is_told_in_the_stream(
    shapes_bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that fails after the first tokens: an error in the stream, and no end of it."""
    with running_server(shapes_bundle) as running:
        address = url_of(running)
        steps = iter(range(100))
        step = Stepper.step

        def failing(stepper: Stepper, tokens: Sequence[int]) -> Logits:
            if next(steps) == 3:
                raise DeviceError("a secret of the device")
            return step(stepper, tokens)

        monkeypatch.setattr(Stepper, "step", failing)
        body = {"messages": messages(image, CAPTION), "stream": True}
        raw = httpx.post(f"{address}/v1/chat/completions", json=body).text
        assert "[DONE]" not in raw
        assert "secret" not in raw
        error = json.loads(raw.strip().splitlines()[-1].removeprefix("data: "))["error"]
        assert error["code"] == "device_error"
        steps = iter(range(100))
        with (
            openai_client(running) as client,
            pytest.raises(openai.APIError, match="device failed"),
        ):
            stream(client, messages(image, CAPTION))


def test_options_of_the_server(shapes_bundle: Path, image: Path) -> None:
    options: dict[str, Any] = {"default_task": "caption en", "strict_chat": True, "max_images": 1}
    with (
        running_server(shapes_bundle, **options) as running,
        openai_client(running) as client,
    ):
        alone = text(ask(client, messages(image, CAPTION)))
        only = messages(image, CAPTION)
        only[0]["content"].pop()
        assert text(ask(client, only)) == alone
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, [{"role": "system", "content": "be brief"}, *only])
        assert refused.value.code == "strict_chat"
        only[0]["content"] *= 2
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, only)
        assert refused.value.code == "too_many_images"
