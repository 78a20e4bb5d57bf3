"""What clients send that is no request: each gets an error of its own, and takes no place."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.helpers.image_files import encoded, png_header
from tests.helpers.typed_app import Response, as_text, asked, error_of, running_app

TASKS = ("caption", "ask", "ocr", "detect", "segment", "classify", "generate")
DEEP = 200_000


@pytest.fixture(scope="module")
def client(shapes_bundle: Path) -> Iterator[TestClient]:
    with running_app(shapes_bundle) as app:
        yield TestClient(app, "http://localhost")


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


@pytest.fixture(autouse=True)
def _nothing_waits(client: TestClient) -> Iterator[None]:
    yield
    scheduler = client.app.state.server.answering.scheduler  # type: ignore[attr-defined]
    assert scheduler.waiting == 0


def refusal(response: Response, status: int = 400) -> dict[str, Any]:
    error = error_of(response)
    assert response.status_code == status, response.text[:500]
    assert len(error["message"]) <= 600
    return error


def sent(client: TestClient, body: bytes | str, task: str = "caption") -> Response:
    return client.post(f"/v1/{task}", content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"caption"',
        b"{",
        b"{}x",
        b"\xef\xbb\xbf{}",
        b'{"image":"AAAA"}}',
        b"{'image':'AAAA'}",
        b'{"image":"\xff\xfe"}',
        b'{"image":"\\ud800"}',
        b'{"image":"\\x"}',
        b'{"image":NaN}',
        b'{"image":Infinity}',
        b'{"image":"AAAA","timeout":NaN}',
        b'{"image":"AAAA","timeout":-Infinity}',
        b'{"image":"AAAA","timeout":1e999}',
        b'{"image":"AAAA","timeout":0}',
        b'{"image":"AAAA","timeout":"1"}',
        b'{"image":"AAAA","max_new_tokens":0}',
        b'{"image":"AAAA","max_new_tokens":1.5}',
        b'{"image":"AAAA","max_new_tokens":18446744073709551617}',
        b'{"image":"AAAA","max_new_tokens":' + b"9" * 100_000 + b"}",
        b'{"image":"AAAA","stream":1}',
        b'{"image":"AAAA","supersede":""}',
        b'{"image":"AAAA","model":7}',
        b'{"image":"AAAA","language":null}',
        b'{"image":["AAAA"]}',
        b'{"image":{}}',
        b'{"image":{"id":1}}',
        b'{"image":{"id":"img_1","url":"http://127.0.0.1/"}}',
        b'{"image":"AAAA","image_id":"img_1"}',
        b'{"image":' + b"[" * DEEP,
        b'{"image":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"x":' + b'{"x":' * DEEP,
        b'{"image":{"id":' + b"[" * DEEP + b"]" * DEEP + b"}}",
        b'{"image":"AAAA","labels":["x"]}',
        b'{"image":"AAAA","\\u001b[31m":1}',
        b'{"image":"AAAA","' + b"x" * 1_000_000 + b'":1}',
        b"\0" * 1000,
        "{}".encode("utf-16"),
    ],
)
def test_json_that_is_no_request(client: TestClient, body: bytes) -> None:
    refusal(sent(client, body))


@pytest.mark.parametrize(
    ("task", "fields", "param"),
    [
        ("ask", {}, None),
        ("ask", {"question": 1}, "question"),
        ("ask", {"question": ""}, None),
        ("ask", {"question": " \n"}, None),
        ("ask", {"question": "why?", "language": "e n"}, None),
        ("ask", {"question": "x" * 300_000}, None),
        ("caption", {"language": "<loc0000>"}, None),
        ("caption", {"language": ""}, None),
        ("caption", {"max_new_tokens": 2**31 - 1}, None),
        ("detect", {}, None),
        ("detect", {"labels": "cat"}, "labels"),
        ("detect", {"labels": []}, "labels"),
        ("detect", {"labels": [""]}, None),
        ("detect", {"labels": ["a;b"]}, None),
        ("detect", {"labels": [None]}, "labels[0]"),
        ("detect", {"labels": ["x"] * 1001}, "labels"),
        ("detect", {"labels": ["x"], "classes": []}, "classes"),
        ("detect", {"labels": ["x"], "classes": ["a", "a"]}, None),
        ("detect", {"labels": ["x"], "label_set": "none"}, "label_set"),
        ("detect", {"labels": ["x"], "label_set": "asked", "constrained": False}, None),
        ("detect", {"labels": ["x"], "masks": "polygon"}, "masks"),
        ("detect", {"labels": ["x"], "format": "xml"}, "format"),
        ("detect", {"labels": ["x"], "min_confidence": 1.01}, "min_confidence"),
        ("detect", {"labels": ["x"], "min_confidence": -0.01}, "min_confidence"),
        ("detect", {"labels": ["x"], "min_confidance": 0.5}, None),
        ("classify", {"prompt": "x"}, None),
        ("classify", {"prompt": "x", "choices": []}, "choices"),
        ("classify", {"prompt": "x", "choices": ["a", "a"]}, None),
        ("classify", {"prompt": "x", "choices": [" "]}, None),
        ("classify", {"prompt": "x", "choices": ["a"] * 10_001}, "choices"),
        ("classify", {"prompt": "x", "choices": ["a"], "max_new_tokens": 3}, None),
        ("generate", {}, None),
        ("generate", {"prompt": "x", "prompts": ["y"]}, None),
        ("generate", {"prompts": []}, "prompts"),
        ("generate", {"prompts": ["x"] * 17}, "prompts"),
        ("generate", {"prompt": "detect"}, None),
        ("generate", {"prompt": "x", "temperature": -1}, "temperature"),
        ("generate", {"prompt": "x", "temperature": 2.01}, "temperature"),
        ("generate", {"prompt": "x", "top_p": 2}, "top_p"),
        ("generate", {"prompt": "x", "top_k": -1}, "top_k"),
        ("generate", {"prompt": "x", "seed": 2**63}, "seed"),
        ("generate", {"prompt": "x", "seed": -1}, "seed"),
        ("ocr", {"prompt": "x"}, None),
    ],
)
def test_fields_that_cannot_be_used(
    client: TestClient, image: Path, task: str, fields: dict[str, Any], param: str | None
) -> None:
    body = {"image": as_text(image), **fields}
    error = refusal(client.post(f"/v1/{task}", json=body))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_a_query_is_checked_as_json_is(client: TestClient, image: Path) -> None:
    file = image.read_bytes()
    for task, query in (
        ("caption", {"timeout": "nan"}),
        ("caption", {"timeout": "inf"}),
        ("caption", {"timeout": "1e999"}),
        ("caption", {"max_new_tokens": ""}),
        ("caption", {"max_new_tokens": "9" * 30}),
        ("caption", {"stream": "yes"}),
        ("caption", {"language": ["en", "de"]}),
        ("caption", {"unknown": "1"}),
        ("caption", {"image": "AAAA"}),
        ("caption", {"image_id": "img_1"}),  # beside an image
        ("detect", {}),
        ("detect", {"labels": ["x"], "min_confidence": "nan"}),
        ("generate", {"prompt": "x", "temperature": "0x1"}),
    ):
        error = refusal(client.post(f"/v1/{task}", content=file, params=query))
        assert error["code"]
    question = {"question": "null"}  # is a text all the same
    answer = client.post("/v1/ask", content=file, params=question).json()
    assert answer["prompt"] == "answer en null"


@pytest.mark.parametrize("task", TASKS)
def test_an_image_is_required(client: TestClient, task: str) -> None:
    fields = {"question": "x", "labels": "x", "prompt": "x", "choices": "x"}
    needed = {
        "ask": ("question",),
        "detect": ("labels",),
        "segment": ("labels",),
        "classify": ("prompt", "choices"),
        "generate": ("prompt",),
    }
    query = {name: fields[name] for name in needed.get(task, ())}
    error = refusal(client.post(f"/v1/{task}", params=query))
    assert (error["code"], error["param"]) == ("image_required", "image")
    form = {name: (None, value) for name, value in query.items()} or {"stream": (None, "false")}
    assert refusal(client.post(f"/v1/{task}", files=form))["code"] == "image_required"
    refusal(client.post(f"/v1/{task}", json=query))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"\0\0\0\x18ftypheic",
        b"RIFF\0\0\0\0WAVE",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"\xff\xd8\xff" + bytes(range(256)) * 400,
        png_header(50_000, 50_000),
        png_header(100_000, 1),
        png_header(0, 5),
        png_header(2**31 - 1, 2**31 - 1),
        encoded(Image.new("RGB", (64, 64)), "PNG")[:-40],
    ],
    ids=range(17),
)
def test_what_is_no_image(client: TestClient, data: bytes) -> None:
    text = base64.b64encode(data).decode()
    errors = [refusal(client.post("/v1/caption", json={"image": text}))]
    if data:
        raw = client.post("/v1/caption", content=data, headers={"content-type": "image/png"})
        errors.append(refusal(raw))
        assert errors[-1]["code"] == "image_unreadable"
    errors.append(refusal(client.post("/v1/caption", files={"image": ("a.png", data)})))
    for error in errors:
        assert error["param"] == "image"
        assert "0x" not in error["message"]
        assert "PIL" not in error["message"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 1)])
def test_any_image_with_pixels_is_answered(
    client: TestClient, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size, "red").save(path)
    answer = asked(client, "segment", path, labels=["square"], masks="png")
    assert (answer["image"]["width"], answer["image"]["height"]) == size


def test_other_texts_in_the_place_of_an_image(client: TestClient, image: Path) -> None:
    for text, code in (
        ("http://169.254.169.254/latest/meta-data/", "image_url_invalid"),
        ("file:///etc/passwd", "image_url_invalid"),
        ("/etc/passwd", "image_base64_invalid"),
        (as_text(image)[:-1], "image_base64_invalid"),
        (as_text(image) + "=", "image_base64_invalid"),
        (f"data:image/jpeg;base64,{as_text(image)}", "image_type_invalid"),
        (f"data:text/html;base64,{as_text(image)}", "image_type_invalid"),
        ("", "image_base64_invalid"),
        ("A" * 8_000_000, "image_unreadable"),
        ("A" * 8_000_001, "image_base64_invalid"),
    ):
        error = refusal(client.post("/v1/ocr", json={"image": text}))
        assert (error["code"], error["param"]) == (code, "image")


def test_a_body_that_is_too_large(client: TestClient) -> None:
    body = json.dumps({"image": "A" * (21 << 20)})
    refusal(sent(client, body), 413)
    raw = client.post("/v1/ocr", content=b"x" * (21 << 20), headers={"content-type": "image/png"})
    refusal(raw, 413)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "text/html", "application/xml", "multipart/mixed; boundary=x", "x" * 5000, "\t"],
)
def test_a_body_of_another_type(client: TestClient, image: Path, content_type: str) -> None:
    response = client.post("/v1/caption", content=b"abc", headers={"content-type": content_type})
    if content_type.strip():
        assert refusal(response, 415)["code"] == "unsupported_media_type"
    else:
        refusal(response)


def test_a_form_in_the_style_of_a_query_and_a_compressed_body(
    client: TestClient, image: Path
) -> None:
    refusal(client.post("/v1/detect", data={"labels": "cat"}), 415)
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    refusal(client.post("/v1/caption", content=image.read_bytes(), headers=headers), 415)
    headers["content-encoding"] = "identity"
    response = client.post("/v1/caption", content=image.read_bytes(), headers=headers)
    assert response.status_code == 200


def test_a_query_beside_other_fields(client: TestClient, image: Path) -> None:
    query = {"stream": "true"}
    json_body = {"image": as_text(image)}
    form = {"image": ("a.png", image.read_bytes())}
    for response in (
        client.post("/v1/caption", params=query, json=json_body),
        client.post("/v1/caption", params=query, files=form),
    ):
        assert refusal(response)["code"] == "query_unexpected"


def test_forms_that_are_none(client: TestClient, image: Path) -> None:
    headers = {"content-type": "multipart/form-data; boundary=cut"}
    part = b'--cut\r\ncontent-disposition: form-data; name="labels"\r\n\r\nx\r\n'
    for body in (
        b"",
        b"--cut",
        part,
        part * 5000 + b"--cut--",
        b'--cut\r\ncontent-disposition: form-data; name="a"\r\nx: ' + b"y" * 99_999,
    ):
        refusal(client.post("/v1/detect", content=body, headers=headers))
    without = {"content-type": "multipart/form-data"}
    refusal(client.post("/v1/detect", content=part + b"--cut--", headers=without))
    file = ("a.png", image.read_bytes())
    twice = [("image", file), ("image", file)]
    assert refusal(client.post("/v1/ocr", files=twice))["code"] == "field_repeated"
    repeated = {"language": ["en", "de"]}
    response = client.post("/v1/caption", files={"image": file}, data=repeated)
    assert refusal(response)["code"] == "field_repeated"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method(client: TestClient, method: str) -> None:
    refusal(client.request(method, "/v1/caption"), 405)
