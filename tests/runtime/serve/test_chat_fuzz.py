"""Requests with anything in any field: they are read, or refused by our own error."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.serve.chat_options import read_options
from paligemma_edge.runtime.serve.chat_prompt import read_messages
from paligemma_edge.runtime.serve.chat_wire import ChatRequest
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.json_body import decode_json

DECODER = msgspec.json.Decoder(ChatRequest)
SCHEMA = {
    "type": "object",
    "properties": {"p": {"anyOf": [{"$ref": "#/$defs/k"}, {"type": "null"}]}},
    "required": ["p"],
    "$defs": {"k": {"type": "string", "enum": ["a", "b"], "pattern": "^a$"}},
}
FULL: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "x"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:,"}},
                {"type": "text", "text": "detect cat"},
            ],
        },
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 3,
    "seed": 1,
    "stop": ["a"],
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "structured_outputs": {"choice": ["a"], "regex": "a"},
    "paligemma": {"constrained": True, "label_set": "any", "classes": ["a"], "timeout": 1},
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "logit_bias": {},
    "modalities": ["text"],
}


def places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to each part of a value."""
    parts: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    return [at, *(way for key, part in parts for way in places(part, (*at, key)))]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
    | st.sampled_from(
        ["#/", "#/$defs/k", "string", "null", "user", "text", "image_url", "^$", "["]
    ),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "enum", "$ref", "anyOf", "properties", "role"]),
            parts,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(
    st.sets(st.sampled_from(sorted(FULL)), max_size=len(FULL)),
    st.lists(st.tuples(st.sampled_from(places(FULL)[1:]), ANYTHING), max_size=3),
)
def test_nothing_but_our_own_errors(
    left_out: set[str], changes: list[tuple[tuple[str | int, ...], object]]
) -> None:
    body: Any = copy.deepcopy(FULL)
    for way, value in changes:
        with contextlib.suppress(LookupError, TypeError):  # what is there was changed before
            part = body
            for key in way[:-1]:
                part = part[key]
            part[way[-1]] = value
    for name in left_out - {"messages"}:
        body.pop(name, None)
    try:
        request = decode_json(json.dumps(body).encode(errors="surrogatepass"), DECODER)
        read_options(request)
        read_messages(request.messages, max_images=4, default_task="answer en", strict=False)
    except ApiError as error:
        assert error.status == 400
        assert str(error)


@given(st.binary(max_size=60))
def test_nothing_but_our_own_errors_for_any_bytes(body: bytes) -> None:
    for data in (body, b'{"messages":' + body + b"}", b'{"messages":[{"role":"user"}],' + body):
        with contextlib.suppress(ApiError):
            decode_json(data, DECODER)
