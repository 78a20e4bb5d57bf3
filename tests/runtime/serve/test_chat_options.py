"""Options of a chat completion: what they mean, and what is refused rather than passed over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.serve.chat_options import ChatOptions, read_options
from paligemma_edge.runtime.serve.chat_wire import ChatRequest
from paligemma_edge.runtime.serve.errors import ApiError

MESSAGES = [{"role": "user", "content": "ocr"}]
TWO = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}


def read(**fields: object) -> ChatOptions:
    return read_options(msgspec.convert({"messages": MESSAGES, **fields}, ChatRequest))


def test_without_options_the_likeliest_tokens_are_chosen() -> None:
    options = read()
    assert (options.sampling, options.grammar, options.json) == (None, None, None)
    assert (options.max_tokens, options.stop, options.top_logprobs) == (None, (), None)
    assert not options.stream
    assert options.objects.constrained
    assert options.notes == ()


def test_what_changes_nothing_is_accepted() -> None:
    read(
        n=1,
        tools=[],
        tool_choice="none",
        frequency_penalty=0,
        presence_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        modalities=["text"],
        response_format={"type": "text"},
        structured_outputs={},
        stop=None,
        top_logprobs=0,
        temperature=0,
        seed=7,
    )


def test_sampling_begins_with_a_temperature() -> None:
    assert read(temperature=0.7, top_p=0.9, top_k=40, seed=5).sampling == TopSampling(
        temperature=0.7, top_p=0.9, top_k=40, seed=5
    )
    assert read(temperature=1, top_k=-1, seed=-1).sampling == TopSampling(seed=2**64 - 1)
    drawn = {read(temperature=1).sampling for _ in range(4)}
    assert len(drawn) == 4  # a seed each
    unread = read(top_p=0.5)
    assert unread.sampling is None
    assert "top_p" in unread.notes[0]


def test_tokens_have_two_names() -> None:
    assert read(max_tokens=5).max_tokens == 5
    assert read(max_completion_tokens=5).max_tokens == 5
    assert read(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert refused(max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_stop_is_a_text_or_several() -> None:
    assert read(stop="a").stop == ("a",)
    assert read(stop=["a", "b"]).stop == ("a", "b")
    assert refused(stop="").param == "stop"
    assert refused(stop=["a", ""]).param == "stop"


def test_logprobs() -> None:
    assert read(logprobs=True).top_logprobs == 0
    assert read(logprobs=True, top_logprobs=20).top_logprobs == 20
    assert read(logprobs=False).top_logprobs is None
    assert refused(top_logprobs=2).param == "top_logprobs"


def test_structured_outputs() -> None:
    assert read(structured_outputs={"choice": ["yes", "no"]}).grammar == Choices(("yes", "no"))
    assert read(structured_outputs={"regex": "[0-9]+"}).grammar == Regex("[0-9]+")
    both = refused(structured_outputs={"choice": ["a"], "regex": "a"})
    assert both.param == "structured_outputs"
    for choice in ([], [""], ["a", "a"], ["x"] * 10_001):
        assert refused(structured_outputs={"choice": choice}).param == "structured_outputs.choice"
    assert refused(structured_outputs={"regex": "a" * 10_001}).param == "structured_outputs.regex"
    for name in ("json", "grammar", "json_object", "structural_tag"):
        assert refused(structured_outputs={name: {"a": 1}}).param == f"structured_outputs.{name}"


def test_what_only_paligemma_has() -> None:
    options = read(
        paligemma={
            "constrained": True,
            "label_set": "asked",
            "classes": ["cat"],
            "min_confidence": 0.5,
            "timeout": 3,
            "supersede": "cam1",
        }
    )
    assert (options.objects.labels, options.objects.classes) == ("asked", ["cat"])
    assert (options.min_confidence, options.timeout, options.supersede) == (0.5, 3.0, "cam1")
    assert refused(paligemma={"label_set": "asked", "constrained": False}).param == "paligemma"
    assert refused(paligemma={"classes": []}).param == "paligemma"


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("n", {"n": 2}),
        ("n", {"n": 0}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("functions", {"functions": [{}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("function_call", {"function_call": {"name": "f"}}),
        ("frequency_penalty", {"frequency_penalty": 0.5}),
        ("presence_penalty", {"presence_penalty": -1}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("logit_bias", {"logit_bias": {"5": -100}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "x"}}),
        ("web_search_options", {"web_search_options": {"a": 1}}),
        ("guided_choice", {"guided_choice": ["yes", "no"]}),
        ("guided_regex", {"guided_regex": "a"}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        (
            "response_format.json_schema.schema",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": TWO}}},
        ),
    ],
)
def test_what_would_not_be_honoured_is_refused(param: str, fields: dict[str, Any]) -> None:
    assert refused(**fields).param == param


def test_a_schema_beside_structured_outputs_is_refused() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    error = refused(
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        structured_outputs={"choice": ["a"]},
    )
    assert error.param == "structured_outputs"


def refused(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(**fields)
    assert error.value.status == 400
    return error.value
