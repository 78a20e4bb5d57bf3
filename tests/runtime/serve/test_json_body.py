"""Every kind of broken JSON is a 400 that names what is wrong, and no other exception."""

from __future__ import annotations

import msgspec
import pytest

from paligemma_edge.runtime.serve.chat_wire import ChatRequest
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.json_body import decode_json

DECODER = msgspec.json.Decoder(ChatRequest)
MESSAGES = b'{"messages":[{"role":"user","content":"x"}],%s}'

MALFORMED = [
    b"",
    b"{",
    b"nan",
    b"\xef\xbb\xbf{}",
    b'{"messages":[{"role":"user","content":"x"}]} x',
    b'{"messages":[{"role":"user","content":"\xff"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"a\x00b"}]}',
    MESSAGES % b'"seed":NaN',
    MESSAGES % b'"temperature":Infinity',
    MESSAGES % b"'n':1",
    MESSAGES % (b'"x":' + b"[" * 100_000),
    MESSAGES % (b'"x":' + b"[" * 100_000 + b"]" * 100_000),
    MESSAGES
    % (
        b'"response_format":{"type":"json_schema","json_schema":{"schema":'
        + b'{"a":' * 100_000
        + b"1"
        + b"}" * 100_002
    ),
]
WRONG = [
    (b"[]", None),
    (b"null", None),
    (b"{}", None),
    (b'{"messages":[]}', "messages"),
    (b'{"messages":{}}', "messages"),
    (b'{"messages":[{}]}', "messages[0]"),
    (b'{"messages":[{"role":"robot","content":"x"}]}', "messages[0].role"),
    (b'{"messages":[{"role":"user","content":5}]}', "messages[0].content"),
    (b'{"messages":[{"role":"user","content":[5]}]}', "messages[0].content[0]"),
    (
        b'{"messages":[{"role":"user","content":[{"type":"text","text":[]}]}]}',
        "messages[0].content[0].text",
    ),
    (
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":7}]}]}',
        "messages[0].content[0].image_url",
    ),
    (
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}',
        "messages[0].content[0].image_url",
    ),
    (MESSAGES % b'"model":3', "model"),
    (MESSAGES % b'"stream":"yes"', "stream"),
    (MESSAGES % b'"temperature":"hot"', "temperature"),
    (MESSAGES % b'"temperature":-1', "temperature"),
    (MESSAGES % b'"temperature":2.5', "temperature"),
    (MESSAGES % b'"temperature":1e999', "temperature"),
    (MESSAGES % b'"top_p":1.5', "top_p"),
    (MESSAGES % b'"top_k":-2', "top_k"),
    (MESSAGES % b'"seed":18446744073709551616', "seed"),
    (MESSAGES % b'"seed":1.5', "seed"),
    (MESSAGES % (b'"seed":' + b"9" * 4000), "seed"),
    (MESSAGES % b'"max_tokens":0', "max_tokens"),
    (MESSAGES % b'"max_tokens":-1', "max_tokens"),
    (MESSAGES % b'"max_tokens":18446744073709551616', "max_tokens"),
    (MESSAGES % b'"max_completion_tokens":true', "max_completion_tokens"),
    (MESSAGES % b'"top_logprobs":21', "top_logprobs"),
    (MESSAGES % b'"logprobs":5', "logprobs"),
    (MESSAGES % b'"stop":["a","b","c","d","e"]', "stop"),
    (MESSAGES % b'"stop":[1]', "stop[0]"),
    (MESSAGES % b'"response_format":{"type":"xml"}', "response_format.type"),
    (MESSAGES % b'"structured_outputs":{"choice":"yes"}', "structured_outputs.choice"),
    (MESSAGES % b'"paligemma":{"constrained":"no"}', "paligemma.constrained"),
    (MESSAGES % b'"paligemma":{"min_confidence":2}', "paligemma.min_confidence"),
    (MESSAGES % b'"paligemma":{"timeout":0}', "paligemma.timeout"),
    (MESSAGES % b'"paligemma":{"grammer":true}', "paligemma"),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_json(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        decode_json(body, DECODER)
    assert (refused.value.status, refused.value.code) == (400, "json_invalid")


@pytest.mark.parametrize(("body", "param"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_value_names_its_field(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        decode_json(body, DECODER)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert param is None or param in str(refused.value)


def test_messages_show_nothing_of_the_library() -> None:
    with pytest.raises(ApiError) as refused:
        decode_json(MESSAGES % b'"temperature":"hot"', DECODER)
    assert str(refused.value) == "temperature: expected float | null, got str"


def test_unknown_fields_are_ignored() -> None:
    body = decode_json(MESSAGES % b'"user":"me","metadata":{"a":[1]},"store":true', DECODER)
    assert body.messages[0].content == "x"
