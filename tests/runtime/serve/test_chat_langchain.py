"""Chat completions as LangChain's ChatOpenAI asks for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

from paligemma_edge import PaliGemma
from tests.helpers.chat import url_of
from tests.helpers.serving import running_server

QUESTION = "answer en what shape is yellow?"


@pytest.fixture(scope="module")
def llm(shapes_bundle: Path) -> Iterator[ChatOpenAI]:
    with running_server(shapes_bundle) as running:
        yield ChatOpenAI(
            model="shapes",
            base_url=f"{url_of(running)}/v1",
            api_key=SecretStr("none"),
            max_retries=0,
        )


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def about(image: Path, prompt: str) -> HumanMessage:
    data = base64.b64encode(image.read_bytes()).decode()
    return HumanMessage(
        [
            {"type": "text", "text": prompt},
            {"type": "image", "base64": data, "mime_type": "image/png"},
        ]
    )


def test_invoke(llm: ChatOpenAI, shapes_model: PaliGemma, image: Path) -> None:
    answer = llm.invoke([about(image, "caption en")])
    assert answer.text == shapes_model.run(image, "caption en").text
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 0


def test_stream(llm: ChatOpenAI, shapes_model: PaliGemma, image: Path) -> None:
    chunks = list(llm.stream([about(image, "caption en")], stream_usage=True))
    assert "".join(chunk.text for chunk in chunks) == shapes_model.run(image, "caption en").text
    assert len(chunks) > 3
    assert any(chunk.usage_metadata for chunk in chunks)


def test_batch(llm: ChatOpenAI, shapes_model: PaliGemma, image: Path) -> None:
    prompts = ["caption en", QUESTION, "detect circle"]
    answers = llm.batch([[about(image, prompt)] for prompt in prompts])
    assert [one.text for one in answers] == [shapes_model.run(image, p).text for p in prompts]


def test_options(llm: ChatOpenAI, image: Path) -> None:
    bound = llm.bind(stop=[" star"], logprobs=True, top_logprobs=2, max_tokens=5, temperature=0.0)
    answer = bound.invoke([about(image, "caption en")])
    assert answer.text == "a small purple"
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == answer.text


def test_a_conversation(llm: ChatOpenAI, shapes_model: PaliGemma, image: Path) -> None:
    talk = [
        SystemMessage("You are brief."),
        about(image, "caption en"),
        AIMessage("shapes"),
        HumanMessage(QUESTION),
    ]
    assert llm.invoke(talk).text == shapes_model.run(image, QUESTION).text


class Shape(BaseModel):
    """The shape that was asked for."""

    shape: Literal["star", "circle", "square"]


class Perhaps(BaseModel):
    """What there is."""

    caption: str | None = None


class Typed(TypedDict):
    """How many there are."""

    count: int


class Pair(BaseModel):
    """Two."""

    one: str
    two: str


def test_structured_output(llm: ChatOpenAI, shapes_model: PaliGemma, image: Path) -> None:
    asked: list[Any] = [about(image, QUESTION)]
    assert llm.with_structured_output(Shape).invoke(asked) == Shape(shape="star")
    caption = shapes_model.run(image, QUESTION).text
    assert llm.with_structured_output(Perhaps).invoke(asked) == Perhaps(caption=caption)
    counted = llm.with_structured_output(Typed).invoke(asked)
    assert isinstance(counted, dict)
    assert isinstance(counted["count"], int)
    schema = Shape.model_json_schema()
    assert llm.with_structured_output(schema).invoke(asked) == {"shape": "star"}
    raw = llm.with_structured_output(Shape, include_raw=True).invoke(asked)
    assert isinstance(raw, dict)
    assert raw["parsed"] == Shape(shape="star")


def test_what_is_not_honoured_is_an_error(llm: ChatOpenAI, image: Path) -> None:
    asked: list[Any] = [about(image, QUESTION)]
    with pytest.raises(openai.BadRequestError, match="tools"):
        llm.with_structured_output(Shape, method="function_calling").invoke(asked)
    with pytest.raises(openai.BadRequestError, match="no JSON schema"):
        llm.with_structured_output(Shape, method="json_mode").invoke(asked)
    with pytest.raises(openai.BadRequestError, match="2 properties"):
        llm.with_structured_output(Pair).invoke(asked)
    with pytest.raises(ContextOverflowError):
        llm.invoke([about(image, "word " * 600)])
