"""Forms: as clients write them, cut anywhere, and as an attacker writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest

from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.multipart_body import (
    MAX_PARTS,
    MAX_TEXT_BYTES,
    Form,
    read_form,
)

TYPE = "multipart/form-data; boundary=cut"
IMAGE = b"\xff\xd8\r\n--cu\r\n--\0" * 3


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--cut\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = b"--cut--\r\n"
WHOLE = part("image", IMAGE, '; filename="a.jpg"') + part("labels", b"cat") + END


def read(body: Iterable[bytes] | bytes, content_type: str = TYPE) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in [body] if isinstance(body, bytes) else body:
            yield chunk

    return asyncio.run(read_form(content_type, chunks()))


def refusal(body: Iterable[bytes] | bytes, content_type: str = TYPE) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(body, content_type)
    assert len(str(error.value)) < 250
    return error.value


def test_a_clients_form_is_read() -> None:
    files = {"image": ("street.jpg", IMAGE, "image/jpeg")}
    data = {"labels": ["cat", "großer Hund"], "stream": "true"}
    request = httpx.Request("POST", "http://localhost", files=files, data=data)
    form = read(request.read(), request.headers["content-type"])
    assert form.image == IMAGE
    assert form.fields == {"labels": ["cat", "großer Hund"], "stream": ["true"]}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_form_may_come_in_pieces_of_any_size(size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    form = read([b"", *pieces, b""])
    assert (form.image, form.fields) == (IMAGE, {"labels": ["cat"]})


def test_a_form_that_is_cut_anywhere_is_refused() -> None:
    for end in range(len(WHOLE) - 2):
        assert refusal(WHOLE[:end]).status == 400


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "a" * 71,
        'multipart/form-data; boundary="a\\nb"',
        "multipart/form-data; boundary=\u00e4",
        "multipart/form-data; boundary=other",
        "multipart/form-data; " + "x=y; " * 100_000,
    ],
)
def test_a_form_without_its_boundary_is_refused(content_type: str) -> None:
    error = refusal(WHOLE, content_type)
    assert (error.status, error.code) == (400, "form_invalid")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        b"--cut",
        b"--cut\n",
        b"x--cut\r\n" + WHOLE,
        b"--cut\r\n\r\nwithout a name\r\n" + END,
        b"--cut\r\ncontent-disposition: attachment\r\n\r\nx\r\n" + END,
        b"--cut\r\nno colon\r\n\r\nx\r\n" + END,
        b"--cut\r\ncontent-disposition: form-data; name=\xff\r\n\r\nx\r\n" + END,
        b'--cut\r\ncontent-disposition: form-data; name="a"\n\nx\r\n' + END,
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_parts_are_counted() -> None:
    many = b"".join(part("labels", b"x") for _ in range(MAX_PARTS))
    assert len(read(many + END).fields["labels"]) == MAX_PARTS
    error = refusal(many * 20 + END)
    assert (error.status, error.code) == (400, "form_too_large")


@pytest.mark.parametrize(
    "header", ["x-a: " + "b" * 100_000, "\r\n".join(f"x-{n}: 1" for n in range(1000))]
)
def test_headers_of_parts_are_bounded(header: str) -> None:
    body = f'--cut\r\ncontent-disposition: form-data; name="a"\r\n{header}\r\n\r\nx\r\n'.encode()
    assert refusal(body + END).status == 400
    endless = (b"x" * 4096 for _ in range(10_000))
    assert refusal([b"--cut\r\nx-a: ", *endless]).status == 400


def test_texts_are_bounded_and_images_are_not() -> None:
    long = b"x" * (MAX_TEXT_BYTES + 1)
    error = refusal(part("prompt", long) + END)
    assert (error.status, error.param) == (400, "prompt")
    assert read(part("prompt", long[1:]) + part("image", long) + END).image == long


def test_a_second_image_is_refused() -> None:
    error = refusal(part("image", b"a") + part("image", b"b") + END)
    assert (error.status, error.code, error.param) == (400, "field_repeated", "image")


def test_a_text_that_is_not_utf_8_is_refused() -> None:
    assert refusal(part("prompt\x1b[0m", b"\xff\xfe") + END).code == "field_invalid"


def test_what_follows_the_end_is_ignored() -> None:
    assert read([WHOLE, b"\r\n", b"epilogue"]).image == IMAGE
