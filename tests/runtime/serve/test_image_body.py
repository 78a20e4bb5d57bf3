"""Images as texts: what is taken, and that nothing else is."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from paligemma_edge.runtime.images.formats import FORMATS
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.image_body import MEDIA_TYPES, image_of_text, image_of_url


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, kind)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_each_format_is_taken_by_each_of_its_names(kind: str) -> None:
    data = encoded(kind)
    assert image_of_text(text(data), "image") == data
    for media_type in (*MEDIA_TYPES[kind], "", "application/octet-stream", "image/made-up"):
        assert image_of_url(f"data:{media_type};base64,{text(data)}", "image") == data


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:Image/PNG;BASE64,",
        "data:image/png;name=a.png;base64,",
        "data:;base64,",
    ],
)
def test_a_data_uri_is_a_text_too(head: str) -> None:
    data = encoded("PNG")
    assert image_of_text(head + text(data), "image") == data
    assert image_of_url(head + text(data), "image") == data


@pytest.mark.parametrize(
    "given",
    [
        "",
        "A",
        "AA",
        "AA=",
        "====",
        "AAAA=",
        "AAAA====",
        "AAAAAAA=====",
        "AA==AA==",
        "AAAA\n",
        " AAAA",
        "AA AA",
        "-_-_",
        "AAAA\0",
        "äöüß",
        "\ud83d\ude00",
        "A" * 2_000_001,
    ],
)
@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_what_is_no_base64_is_refused(head: str, given: str) -> None:
    with pytest.raises(ApiError) as error:
        image_of_text(head + given, "image")
    assert (error.value.status, error.value.code) == (400, "image_base64_invalid")
    assert error.value.param == "image"
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.png",
        "https://user:secret@example.org/",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "javascript:alert(1)",
        "blob:null/1",
        "//example.org/a.png",
        "a.png",
        "data:image/png",
        "data:image/png,AAAA",
        "data:image/png;charset=utf-8,AAAA",
        "data:image/png;base64;x,AAAA",
        "",
        "http:" + "a" * 5_000_000,
        "data:" + ";" * 1_000_000,
    ],
)
def test_no_other_address_is_taken(url: str) -> None:
    with pytest.raises(ApiError) as error:
        image_of_url(url, "messages[0].content[1].image_url.url")
    assert (error.value.status, error.value.code) == (400, "image_url_invalid")
    assert len(str(error.value)) < 300


def test_an_address_in_the_place_of_base64_is_told_as_one() -> None:
    with pytest.raises(ApiError, match="addresses are not fetched"):
        image_of_text("https://example.org/street.jpg", "image")


@pytest.mark.parametrize("media_type", ["text/html", "application/json", "video/mp4", "x"])
def test_a_type_of_no_image_is_refused(media_type: str) -> None:
    with pytest.raises(ApiError) as error:
        image_of_url(f"data:{media_type};base64,{text(encoded('PNG'))}", "image")
    assert error.value.code == "image_type_invalid"


def test_a_type_of_another_format_is_refused_and_the_right_one_named() -> None:
    with pytest.raises(ApiError, match="a PNG; write image/png"):
        image_of_url(f"data:image/jpeg;base64,{text(encoded('PNG'))}", "image")


def test_an_error_quotes_nothing_that_commands_a_terminal() -> None:
    with pytest.raises(ApiError) as error:
        image_of_url("x\x1b[31m\n\u202e", "image")
    assert str(error.value).isprintable()


def test_every_format_has_media_types() -> None:
    assert set(MEDIA_TYPES) == {one.name for one in FORMATS}
