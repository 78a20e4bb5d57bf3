"""The OpenAPI document lists what there is, and says it rightly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from paligemma_edge.runtime.serve.openapi import ERRORS
from paligemma_edge.runtime.serve.operations import operations
from tests.helpers.api_fuzz import run_schemathesis
from tests.helpers.serving import served
from tests.helpers.typed_app import asked, running_app

# The page is no API; the others are second paths of what is listed.
UNLISTED = re.compile(r"/|/(page|samples)/.*|/(chat/completions|models(/.*)?)")


@pytest.fixture(scope="module")
def app(shapes_bundle: Path) -> Iterator[Starlette]:
    with running_app(shapes_bundle) as app:
        yield app


@pytest.fixture(scope="module")
def client(app: Starlette) -> TestClient:
    return TestClient(app, "http://localhost")


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:  # noqa: ANN401
    response = client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def test_every_route_is_listed_and_every_operation_is_there(app: Starlette) -> None:
    listed = {(one.method.upper(), one.path) for one in operations()}
    routes = set()
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r":\w+\}", "}", route.path)
        routes |= {(method, path) for method in route.methods or () if method != "HEAD"}
    assert {one for one in routes if not UNLISTED.fullmatch(one[1])} == listed


def test_every_reference_is_defined_and_every_schema_used(document: Any) -> None:  # noqa: ANN401
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', text))
    kinds = ("schemas", "responses")
    defined = {f"{kind}/{name}" for kind in kinds for name in document["components"][kind]}
    assert references == defined
    ids = re.findall(r'"operationId": "(\w+)"', text)
    assert len(ids) == len(set(ids)) == len(operations())


def test_schemas_are_json_schemas(document: Any) -> None:  # noqa: ANN401
    assert document["openapi"].startswith("3.1.")
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "path", [one.path for one in operations() if one.method == "get" and "{" not in one.path]
)
def test_what_is_got_is_what_is_promised(client: TestClient, document: Any, path: str) -> None:  # noqa: ANN401
    response = client.get(path)
    assert response.status_code == 200
    (media_type, content), *_ = document["paths"][path]["get"]["responses"]["200"][
        "content"
    ].items()
    assert response.headers["content-type"].partition(";")[0] == media_type
    if media_type == "application/json":
        whole = {**content["schema"], "components": document["components"]}
        jsonschema.validate(response.json(), whole)
        (kind,) = [
            one.response[media_type]
            for one in operations()
            if (one.method, one.path) == ("get", path)
        ]
        if isinstance(kind, type):
            fields = msgspec.json.encode(msgspec.convert(response.json(), kind))
            assert json.loads(fields) == response.json()  # nothing that the type does not name


def test_an_answer_is_what_is_promised(
    client: TestClient,
    document: Any,  # noqa: ANN401
    shapes_images: Path,
) -> None:
    image = shapes_images / "00.png"
    for task, fields in (
        ("segment", {"labels": ["star"], "masks": "rle"}),
        ("segment", {"labels": ["star"], "masks": "png"}),
        ("segment", {"labels": ["star"], "format": "coco"}),
        ("segment", {"labels": ["star"], "format": "inference"}),
        ("generate", {"prompts": ["caption en", "detect star"]}),
        ("generate", {"prompt": "segment star", "temperature": 1}),
        ("classify", {"prompt": "answer en what?", "choices": ["a", "b"]}),
    ):
        answer = asked(client, task, image, **fields)
        content = document["paths"][f"/v1/{task}"]["post"]["responses"]["200"]["content"]
        schema = content["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": document["components"]})


def test_each_status_of_an_error_is_told_of(document: Any) -> None:  # noqa: ANN401
    assert set(document["components"]["responses"]) == {str(status) for status in ERRORS}
    for path, operation in document["paths"].items():
        for described in operation.values():
            keyless = described.get("security") == []
            assert ("401" in described["responses"]) != keyless, path
    assert document["paths"]["/livez"]["get"]["security"] == []


def test_each_field_is_in_the_query_the_form_and_the_json(document: Any) -> None:  # noqa: ANN401
    schemas = document["components"]["schemas"]
    for name in ("Caption", "Ask", "Ocr", "Detect", "Segment", "Classify", "Generate"):
        operation = document["paths"][f"/v1/{name.lower()}"]["post"]
        query = {one["name"] for one in operation["parameters"]}
        form = set(schemas[f"{name}Form"]["properties"])
        assert form == query | {"image"}
        assert set(schemas[f"{name}Request"]["properties"]) == form - {"image_id"}
        assert schemas[f"{name}Request"]["additionalProperties"] is False
        assert "image" in schemas[f"{name}Request"]["required"]


def test_schemathesis_finds_nothing(app: Starlette, tmp_path: Path) -> None:
    with served(app) as address:
        ended = run_schemathesis(address.port, tmp_path, examples=8, seed=0)
    assert ended.returncode == 0, ended.stdout[:5000] + ended.stderr[-2000:]
