"""Every operation of the server, as its OpenAPI document lists them, and GET /openapi.json.

What is not here is the page, whose files are no API, and second paths of what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paligemma_edge.runtime.serve.chat_wire import ChatCompletion, ChatRequest, Model, ModelList
from paligemma_edge.runtime.serve.coco_format import CocoDocument
from paligemma_edge.runtime.serve.health import PROGRAM
from paligemma_edge.runtime.serve.image_body import MEDIA_TYPES
from paligemma_edge.runtime.serve.inference_format import InferenceDocument
from paligemma_edge.runtime.serve.multipart_body import MEDIA_TYPE as FORM
from paligemma_edge.runtime.serve.openapi import (
    EVENT,
    EVENTS,
    JSON,
    OF_ANSWERS,
    STRING,
    TEXT,
    Operation,
    Schema,
    document,
)
from paligemma_edge.runtime.serve.typed import ENDPOINTS, TypedEndpoint
from paligemma_edge.runtime.serve.typed_answers import ANSWERS, PromptAnswers, TaskName

PATH = "/openapi.json"
_CHAT, _TYPED, _SERVER = "OpenAI", "PaliGemma", "server"
_FILES = {types[0]: {"type": "string", "format": "binary"} for types in MEDIA_TYPES.values()}
_DESCRIPTION = """\
PaliGemma, which answers a prompt about an image with words, boxes and masks.

`/v1/chat/completions` and `/v1/models` are OpenAI's. The others take an image as base64 in JSON,
as the body itself with the fields in the query, or as a part of a form; fields are the same in
all three. Each answer gives its image an id, by which it can be asked about again. Addresses are
not fetched. Fields that are not known are refused.

With `stream`, answers are server-sent events: `start` (request, model and image), `token` (text as
it comes), `object` (an object that is complete), `result` (the whole answer, one for each prompt),
and at the end `done`, or `error`.
"""
_SUMMARIES: dict[TaskName, str] = {
    "caption": "Say what the image shows",
    "ask": "Answer a question about the image",
    "ocr": "Read what is written in the image",
    "detect": "Find objects: boxes with labels",
    "segment": "Find objects: boxes with labels and masks",
    "classify": "Choose one of a closed set of answers",
    "generate": "Answer a prompt, or several about one image",
}


class Status(Struct):
    """It is well."""

    status: Literal["ok"]


class Live(Struct):
    """It lives."""

    live: Literal[True]


class Ready(Struct):
    """It takes questions."""

    ready: Literal[True]


class BundleInfo(Struct):
    """The bundle: what it is called, and the SHA-256 of its manifest."""

    name: str
    id: str


class ServerInfo(Struct):
    """What is served, and within which limits."""

    name: str
    version: str
    bundle: BundleInfo
    variant: str
    device: str
    adapters: list[str]
    image_size: int
    max_model_len: int
    slots: int
    running: int
    waiting: int
    masks: bool
    regex: bool
    limits: dict[str, float]


def operations() -> list[Operation]:
    """All operations, in the order in which they are listed."""
    return [*map(_typed, ENDPOINTS), *_openai(), *_about_the_server()]


def openapi_routes() -> list[Route]:
    """The document, which is made once."""
    described = document(operations(), version=version(PROGRAM), description=_DESCRIPTION)
    content = msgspec.json.encode(described)

    async def openapi(_request: Request) -> Response:
        return Response(content, media_type=JSON)

    return [Route(PATH, openapi, name="openapi")]


def _typed(endpoint: TypedEndpoint) -> Operation:
    task, reader = endpoint.task, endpoint.reader
    answers: list[type] = [ANSWERS[task]]
    if task == "generate":
        answers.append(PromptAnswers)
    if task in ("detect", "segment", "generate"):
        answers += [CocoDocument, InferenceDocument]
    return Operation(
        method="post",
        path=endpoint.path,
        summary=_SUMMARIES[task],
        tag=_TYPED,
        description="The query is for images that are sent raw.",
        query=reader.query_type,
        body={JSON: reader.json_type, FORM: reader.form_type, **_FILES},
        response={JSON: tuple(answers), EVENTS: EVENT},
        errors=OF_ANSWERS,
    )


def _openai() -> Sequence[Operation]:
    return (
        Operation(
            method="post",
            path="/v1/chat/completions",
            summary="Answer the last user message",
            tag=_CHAT,
            body={JSON: ChatRequest},
            response={JSON: ChatCompletion, EVENTS: EVENT},
            errors=OF_ANSWERS,
        ),
        _get("/v1/models", "The base model and its adapters", ModelList, tag=_CHAT),
        Operation(
            method="get",
            path="/v1/models/{model}",
            summary="One of the models",
            tag=_CHAT,
            parameters={"model": "Its id."},
            response={JSON: Model},
            errors=(404,),
        ),
    )


def _about_the_server() -> Sequence[Operation]:
    return (
        _get("/v1/info", "What is served, and within which limits", ServerInfo),
        _get("/health", "Whether it takes questions", Status, keyless=True),
        _get("/readyz", "Whether it takes questions", Status, keyless=True),
        _get("/livez", "Whether the process lives", Status, keyless=True),
        _get("/v2/health/live", "Whether the process lives", Live, keyless=True),
        _get("/v2/health/ready", "Whether it takes questions", Ready, keyless=True),
        Operation(
            method="get",
            path="/metrics",
            summary="Figures for Prometheus",
            tag=_SERVER,
            response={TEXT: STRING},
        ),
        _get(PATH, "This document", {"type": "object"}),
    )


def _get(
    path: str, summary: str, answer: Schema, *, tag: str = _SERVER, keyless: bool = False
) -> Operation:
    return Operation(
        method="get", path=path, summary=summary, tag=tag, response={JSON: answer}, keyless=keyless
    )
