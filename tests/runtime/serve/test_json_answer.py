"""JSON that the server writes around a plain answer: which schemas, and that it always parses."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.serve.chat_wire import JsonSchema, ResponseFormat
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.json_answer import JsonForm, JsonWriter, Kind, json_form


def form(schema: dict[str, Any]) -> JsonForm | None:
    return json_form(ResponseFormat("json_schema", JsonSchema(schema)))


def of(value: object) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": value}}


class Weather(Enum):
    RAIN = "rain"
    SUN = "sun"


class Free(BaseModel):
    caption: str


class OneOf(BaseModel):
    answer: Literal["yes", "no"]


class Constant(BaseModel):
    answer: Literal["yes"]


class OfEnum(BaseModel):
    weather: Weather


class Perhaps(BaseModel):
    caption: str | None = None


class Count(BaseModel):
    count: int


class Truth(BaseModel):
    raining: bool


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (Free, JsonForm("caption", "string", None)),
        (OneOf, JsonForm("answer", "string", Choices(("yes", "no")))),
        (Constant, JsonForm("answer", "string", Choices(("yes",)))),
        (OfEnum, JsonForm("weather", "string", Choices(("rain", "sun")))),
        (Perhaps, JsonForm("caption", "string", None)),
        (Count, JsonForm("count", "integer", Regex("-?(0|[1-9][0-9]{0,17})"))),
        (Truth, JsonForm("raining", "boolean", Choices(("yes", "no")))),
    ],
)
def test_what_pydantic_writes(model: type[BaseModel], wanted: JsonForm) -> None:
    assert form(model.model_json_schema()) == wanted
    assert form(to_strict_json_schema(model)) == wanted


@pytest.mark.parametrize(
    ("typed", "held_to"),
    [
        ("[0-9]+", "[0-9]+"),
        ("^[0-9]+$", "[0-9]+"),
        (r"^a\$", r"a\$"),
        (r"^a\\$", r"a\\"),
        ("^$", ""),
    ],
)
def test_a_pattern_is_matched_as_a_whole(typed: str, held_to: str) -> None:
    assert form(of({"type": "string", "pattern": typed})) == JsonForm("p", "string", Regex(held_to))


def test_other_spellings() -> None:
    assert form(of({"type": ["string", "null"]})) == JsonForm("p", "string", None)
    assert form(of({"enum": ["a", "b"]})) == JsonForm("p", "string", Choices(("a", "b")))
    assert json_form(None) is None
    assert json_form(ResponseFormat("text")) is None


TEXT = st.text(st.characters(codec="utf-8"))
LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {"p": {"type": "string"}}, "required": ["q"]},
        of(5),
        of({}),
        of({"type": "number"}),
        of({"type": "array"}),
        of({"type": "object", "properties": {"a": {"type": "string"}}}),
        of({"type": ["string", "integer"]}),
        of({"type": "string", "minLength": 3}),
        of({"type": "string", "format": "date"}),
        of({"type": "integer", "minimum": 3}),
        of({"type": "integer", "enum": [1, 2]}),
        of({"type": "string", "enum": []}),
        of({"type": "string", "enum": [1]}),
        of({"type": "string", "enum": "ab"}),
        of({"type": "string", "pattern": 5}),
        of({"type": "string", "pattern": "a" * 10_001}),
        of({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        of({"anyOf": 5}),
        of({"$ref": "http://example.com/schema"}),
        of({"$ref": "#/$defs/none"}),
        of({"$ref": 5}),
        LOOP,
    ],
)
def test_other_schemas_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        form(schema)
    assert (refused.value.status, refused.value.param) == (
        400,
        "response_format.json_schema.schema",
    )


def written(to: JsonForm, pieces: list[str]) -> str:
    writer = JsonWriter(to)
    return "".join([*map(writer.push, pieces), writer.finish()])


@given(TEXT, st.lists(TEXT))
def test_any_text_in_any_pieces_is_json(name: str, pieces: list[str]) -> None:
    answer = written(JsonForm(name, "string", None), pieces)
    assert json.loads(answer) == {name: "".join(pieces)}
    assert answer == written(JsonForm(name, "string", None), ["".join(pieces)])


def test_text_is_written_as_it_comes() -> None:
    writer = JsonWriter(JsonForm("p", "string", None))
    assert [writer.push("a\n"), writer.push("é"), writer.finish()] == ['{"p":"a\\n', "é", '"}']


@pytest.mark.parametrize(
    ("kind", "pieces", "wanted"),
    [
        ("integer", ["1", "2"], 12),
        ("integer", ["-", "3"], -3),
        ("integer", [], None),
        ("integer", ["-"], None),
        ("boolean", ["y", "es"], True),
        ("boolean", ["no"], False),
        ("boolean", ["n"], None),
    ],
)
def test_other_values(kind: Kind, pieces: list[str], wanted: object) -> None:
    assert json.loads(written(JsonForm("p", kind, None), pieces)) == {"p": wanted}
