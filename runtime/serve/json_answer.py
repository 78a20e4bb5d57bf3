"""`response_format`: the model answers plainly, and the server writes the JSON around it.

A PaliGemma never learnt to write JSON, so a schema may have one property, whose value is the whole
answer. Knows JSON schema, as far as it says what one value may be. Knows nothing of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.serve.chat_wire import ResponseFormat
from paligemma_edge.runtime.serve.errors import ApiError

Kind: TypeAlias = Literal["string", "integer", "boolean"]
Schema: TypeAlias = Mapping[str, Any]

_PARAM = "response_format.json_schema.schema"
_WANTED = (
    "wanted an object with one property that is a string, an integer or a boolean, since this "
    "model answers in plain words and the server writes the JSON"
)
_NO_RULES = {"title", "description", "default", "examples", "$comment", "type", "enum", "const"}
_MOST_REFERENCES = 8
_INTEGER = "-?(0|[1-9][0-9]{0,17})"
_BOOLEANS = {"yes": True, "no": False}


@dataclass(frozen=True)
class JsonForm:
    """An object with one property: its name, its type, and what the model's answer is held to."""

    name: str
    kind: Kind
    grammar: Grammar | None


def json_form(response_format: ResponseFormat | None) -> JsonForm | None:
    """The form of the JSON that is asked for, None for plain text.

    Args:
        response_format: of the request.

    Returns:
        The one property of the schema's object. A string may have an `enum`, a `const` or a
        `pattern`, which the whole text then matches; Literal, Enum and Optional of pydantic are
        read too. Booleans are asked for as "yes" and "no".

    Raises:
        ApiError: 400; the schema has another form.

    Source: https://json-schema.org/draft/2020-12/json-schema-validation
    """
    if response_format is None or response_format.type == "text":
        return None
    schema = None if response_format.json_schema is None else response_format.json_schema.schema
    if response_format.type == "json_object" or schema is None:
        raise _refused(f"there is no JSON schema, {_WANTED}", "response_format")
    root = _resolved(schema, schema)
    properties = root.get("properties")
    if root.get("type") != "object" or not isinstance(properties, dict) or len(properties) != 1:
        raise _refused(f"the schema is {_described(root)}, {_WANTED}")
    ((name, value),) = properties.items()
    missing = set(_names(root.get("required"))) - {name}
    if missing:
        raise _refused(f"the schema requires {min(missing)!r}, which is no property of it")
    return _form(name, _value_schema(value, schema))


@dataclass(eq=False)
class JsonWriter:
    """Writes the JSON as the model's answer grows: strings at once, other values at the end."""

    form: JsonForm
    _text: list[str] = field(default_factory=list)
    _begun: bool = False

    def push(self, piece: str) -> str:
        """The JSON that a piece of the model's answer adds."""
        if self.form.kind != "string":
            self._text.append(piece)
            return self._opening()
        return self._opening() + _escaped(piece)

    def finish(self) -> str:
        """The rest of the JSON; a number or truth value that was cut is null."""
        if self.form.kind == "string":
            return self._opening() + '"}'
        return f"{self._opening()}{json.dumps(self._value(''.join(self._text).strip()))}}}"

    def _opening(self) -> str:
        if self._begun:
            return ""
        self._begun = True
        quote = '"' if self.form.kind == "string" else ""
        return f"{{{json.dumps(self.form.name, ensure_ascii=False)}:{quote}"

    def _value(self, text: str) -> int | bool | None:
        if self.form.kind == "boolean":
            return _BOOLEANS.get(text)
        try:
            return int(text)
        except ValueError:
            return None


def _form(name: str, value: Schema) -> JsonForm:
    kind = value.get("type", "string" if "enum" in value or "const" in value else None)
    rules = set(value) - _NO_RULES - ({"pattern"} if kind == "string" else set())
    if kind not in ("string", "integer", "boolean"):
        raise _refused(f"the property {name!r} is {_described(value)}, {_WANTED}")
    if kind != "string":
        rules |= {"enum", "const"} & set(value)
    if rules:
        raise _refused(
            f"the property {name!r} has the rule {min(rules)!r}, which is not held to; leave it "
            "out, or say it as a pattern of a string"
        )
    try:
        return JsonForm(name, kind, _grammar(kind, value))
    except OptionError as error:
        raise _refused(f"the property {name!r}: {error}") from None


def _grammar(kind: Kind, value: Schema) -> Grammar | None:
    if kind == "boolean":
        return Choices(tuple(_BOOLEANS))
    if kind == "integer":
        return Regex(_INTEGER)
    if "const" in value:
        return Choices.of([value["const"]])
    if "enum" in value:
        return Choices.of(value["enum"])
    return Regex(_unanchored(value["pattern"])) if "pattern" in value else None


def _unanchored(pattern: object) -> str:
    """A pattern without the anchors at its ends: the whole text matches it anyway."""
    if not isinstance(pattern, str):
        raise OptionError(f"the pattern is {pattern!r}, wanted a text such as '[0-9]+'")
    begun = pattern.removeprefix("^")
    escapes = len(begun) - 1 - len(begun[:-1].rstrip("\\"))
    return begun[:-1] if begun.endswith("$") and escapes % 2 == 0 else begun


def _value_schema(value: object, root: Schema) -> Schema:
    """The schema of the value; of one that may be null too, that of what it else may be."""
    schema = _resolved(value, root)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(key), list):
            kinds = [_resolved(option, root) for option in options]
            others = [kind for kind in kinds if kind.get("type") != "null"]
            if len(others) == 1:
                return others[0]
    if isinstance(names := schema.get("type"), list) and len(names) == 2 and "null" in names:
        return {**schema, "type": next(name for name in names if name != "null")}
    return schema


def _resolved(schema: object, root: Schema) -> Schema:
    """A schema with its reference followed, which is one into the same document."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict):
            raise _refused(f"a schema is a {type(schema).__name__}, wanted an object")
        if (reference := schema.get("$ref")) is None:
            return schema
        schema = _referred(reference, root)
    raise _refused("the schema's references never end, wanted a schema")


def _referred(reference: object, root: Schema) -> object:
    found: object = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _refused(f"the schema refers to {reference!r}, wanted a place such as '#/$defs/Name'")
    for key in reference.removeprefix("#").split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise _refused(f"the schema refers to {reference!r}, which it does not have")
        found = found[name]
    return found


def _described(schema: Schema) -> str:
    """What a schema is, in a few words."""
    kind = schema.get("type")
    if kind == "object" and isinstance(properties := schema.get("properties"), dict):
        return f"an object with {len(properties)} properties"
    return f"of the type {kind!r}" if kind is not None else "of no type"


def _names(required: object) -> list[str]:
    return (
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    )


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _refused(message: str, param: str = _PARAM) -> ApiError:
    return ApiError(400, message, code="response_format_unsupported", param=param)
