"""The OpenAPI document of a table of operations: from the types that are read and written.

Knows OpenAPI 3.1 and msgspec's types. Which routes there are is in `operations.py`.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

# A type that msgspec knows, one of several such types, or a JSON schema.
Schema: TypeAlias = type | tuple[type, ...] | Mapping[str, Any]
Content: TypeAlias = Mapping[str, Schema]  # by media type

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
STRING: Mapping[str, Any] = {"type": "string"}
# An event of a stream: before OpenAPI 3.2 the schema of a stream describes each of its events.
EVENT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"event": STRING, "data": STRING},
    "required": ["data"],
}
_REF = "#/components/schemas/{name}"
_KEY = "key"
_HEADERS: Mapping[str, Any] = {
    "x-request-id": {"description": "The request's name in the server's log.", "schema": STRING}
}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")  # of a path, as Starlette writes it


class ErrorFields(Struct):
    """What went wrong, as OpenAI's API says it: in words, and by a code for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct):
    """An error."""

    error: ErrorFields


ERRORS: Mapping[int, str] = {
    400: "The request cannot be used.",
    401: "No valid API key was given.",
    403: "The server is not called by this name, or asked by a page of another origin.",
    404: "There is no such model, image or address.",
    408: "The request did not arrive in time.",
    409: "A newer request with the same `supersede` took its place.",
    413: "The request is too large.",
    415: "Bodies of this content-type are not taken.",
    429: "Too many requests of this client are waiting.",
    431: "The headers are too long.",
    500: "The server failed; its log says why.",
    503: "Too much is waiting, the device failed, or the server is starting or stopping.",
    504: "The time limit passed before an answer began.",
}
_OF_ALL = (400, 403, 408, 413, 431, 503)
OF_ANSWERS = (404, 409, 415, 429, 500, 504)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A method of a path.

    Args:
        method: of HTTP.
        path: as the route has it.
        summary: a line.
        tag: under which it is listed.
        description: in Markdown.
        query: the type whose fields are the query's.
        parameters: what the parameters of the path are.
        body: what is taken, by media type.
        response: what 200 has, by media type.
        errors: which errors it may give beside those that every route may.
        keyless: whether it needs no API key.
    """

    method: Literal["get", "post"]
    path: str
    summary: str
    tag: str
    description: str = ""
    query: type[Struct] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: Content = field(default_factory=dict)
    response: Content = field(default_factory=lambda: {JSON: {}})
    errors: Sequence[int] = ()
    keyless: bool = False

    @property
    def documented_path(self) -> str:
        """The path as OpenAPI writes it."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def statuses(self) -> list[int]:
        """All statuses of errors that it may give."""
        return sorted({*_OF_ALL, *self.errors, *(() if self.keyless else (401,))})


def document(operations: Iterable[Operation], *, version: str, description: str) -> dict[str, Any]:
    """The whole document, as plain JSON values.

    Args:
        operations: of all parts of the server.
        version: of the package.
        description: of the server, in Markdown.
    """
    listed = list(operations)
    schemas = _Schemas.of(listed)
    paths: dict[str, dict[str, Any]] = {}
    for one in listed:
        paths.setdefault(one.documented_path, {})[one.method] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "paligemma-edge", "version": version, "description": description},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {str(status): _error(status, schemas) for status in ERRORS},
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
        "security": [{_KEY: []}, {}],  # there may be no keys
    }


@dataclass(frozen=True)
class _Schemas:
    """The schemas of all types, by reference to the components."""

    components: Mapping[str, Any]
    _references: Mapping[type, Mapping[str, Any]]

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> _Schemas:
        contents = [one for each in operations for one in (each.body, each.response)]
        kinds = [kind for one in contents for schema in one.values() for kind in _types(schema)]
        kinds = list(dict.fromkeys([*kinds, ErrorBody]))
        references, components = msgspec.json.schema_components(kinds, ref_template=_REF)
        return cls(components, dict(zip(kinds, references, strict=True)))

    def content(self, content: Content) -> dict[str, Any]:
        return {media: {"schema": self._schema(schema)} for media, schema in content.items()}

    def _schema(self, schema: Schema) -> Mapping[str, Any]:
        if isinstance(schema, Mapping):
            return schema
        references = [self._references[kind] for kind in _types(schema)]
        return references[0] if len(references) == 1 else {"anyOf": references}


def _types(schema: Schema) -> tuple[type, ...]:
    if isinstance(schema, Mapping):
        return ()
    return schema if isinstance(schema, tuple) else (schema,)


def _operation(one: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{one.method}{re.sub(r'[^a-z0-9]+', '_', one.path.lower())}".strip("_"),
        "summary": one.summary,
        "tags": [one.tag],
        "parameters": [*_path_parameters(one), *_query_parameters(one)],
        "responses": _responses(one, schemas),
    }
    if one.description:
        described["description"] = one.description
    if one.body:
        described["requestBody"] = {"required": True, "content": schemas.content(one.body)}
    if one.keyless:
        described["security"] = []
    return described


def _responses(one: Operation, schemas: _Schemas) -> dict[str, Any]:
    whole = {
        "description": one.summary,
        "headers": _HEADERS,
        "content": schemas.content(one.response),
    }
    errors = {str(n): {"$ref": f"#/components/responses/{n}"} for n in one.statuses}
    return {"200": whole, **errors}


def _error(status: int, schemas: _Schemas) -> dict[str, Any]:
    return {
        "description": ERRORS[status],
        "headers": _HEADERS,
        "content": schemas.content({JSON: ErrorBody}),
    }


def _path_parameters(one: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": one.parameters[name],
            "schema": STRING,
        }
        for name in _PARAMETER.findall(one.path)
    ]


def _query_parameters(one: Operation) -> list[dict[str, Any]]:
    """The fields of a type; lists repeat the name."""
    if one.query is None:
        return []
    _, (schema, *others) = _components_of(one.query)
    assert not others, "the fields of a query are plain"
    return [_query_parameter(name, dict(kind)) for name, kind in schema["properties"].items()]


def _components_of(kind: type) -> tuple[Any, list[Mapping[str, Any]]]:
    reference, components = msgspec.json.schema_components([kind], ref_template=_REF)
    return reference, list(components.values())


def _query_parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """None of them is required: where the body is JSON, there is no query."""
    if "anyOf" in schema:  # null is written by leaving it out
        (kind,) = (one for one in schema.pop("anyOf") if one.get("type") != "null")
        schema = {**kind, **schema}
        schema.pop("default", None)
    parameter = {"name": name, "in": "query", "required": False}
    if "description" in schema:
        parameter["description"] = schema.pop("description")
    return {**parameter, "schema": schema}
