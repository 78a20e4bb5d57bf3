"""A form with an image, as browsers and curl -F send it: parts of bounded number and size.

Nothing is written to disk. Knows the form. Knows nothing of what its fields mean.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.size_text import size_text

MEDIA_TYPE = "multipart/form-data"
MAX_PARTS = 256
MAX_TEXT_BYTES = 64 << 10  # of one field; no prompt that a model holds is longer
_MAX_HEADER_BYTES, _MAX_HEADERS = 2048, 8
_IMAGE = "image"
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")  # RFC 2046, 5.1.1


@dataclass(eq=False)
class Form:
    """The parts of a form: the bytes of the one named `image`, and the texts of the others."""

    image: bytes | None = None
    fields: dict[str, list[str]] = field(default_factory=dict)


async def read_form(content_type: str, chunks: AsyncIterator[bytes]) -> Form:
    """Read a form as it comes.

    Args:
        content_type: the request's header, which has the boundary.
        chunks: the body.

    Returns:
        The image and the other fields; those that are there twice have two texts.

    Raises:
        ApiError: 400; it is no such form, has two images, or too many or too large parts.

    Source: https://www.rfc-editor.org/rfc/rfc7578
    """
    try:
        parser = PushMultipartParser(
            _boundary(content_type),
            max_header_size=_MAX_HEADER_BYTES,
            max_header_count=_MAX_HEADERS,
            max_segment_count=MAX_PARTS,
        )
        return await _parsed(parser, chunks)
    except ParserLimitReached:
        raise ApiError(
            400,
            f"the form has more than {MAX_PARTS} parts, or a part with long headers; "
            "send long lists as JSON",
            code="form_too_large",
        ) from None
    except MultipartError:
        raise _malformed("its parts are not separated as its boundary says, or it is cut") from None


async def _parsed(parser: PushMultipartParser, chunks: AsyncIterator[bytes]) -> Form:
    form, name, value = Form(), "", bytearray()
    with parser:  # which misses the end where there is none
        async for chunk in chunks:
            for event in parser.parse(chunk) if chunk else ():
                if isinstance(event, MultipartSegment):
                    name, value = event.name or "", bytearray()
                elif event is None:
                    _add(form, name, bytes(value))
                else:
                    value += event
                    _check_size(name, len(value))
    return form


def _add(form: Form, name: str, value: bytes) -> None:
    if name == _IMAGE:
        if form.image is not None:
            raise ApiError(
                400,
                "the form has two parts named image, wanted one",
                code="field_repeated",
                param=_IMAGE,
            )
        form.image = value
        return
    try:
        form.fields.setdefault(name, []).append(value.decode())
    except UnicodeDecodeError:
        raise ApiError(
            400,
            f"the field {name[:60]!r} is no text in UTF-8; an image belongs into the part image",
            code="field_invalid",
            param=name[:60],
        ) from None


def _check_size(name: str, size: int) -> None:
    if name != _IMAGE and size > MAX_TEXT_BYTES:
        raise ApiError(
            400,
            f"the field {name[:60]!r} has more than {size_text(MAX_TEXT_BYTES)}; shorten it",
            code="form_too_large",
            param=name[:60],
        )


def _boundary(content_type: str) -> str:
    boundary: str = parse_options_header(content_type)[1].get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("its content-type has no boundary of 1 to 70 plain characters")
    return boundary


def _malformed(reason: str) -> ApiError:
    return ApiError(
        400,
        f"the form cannot be read: {reason}; let your HTTP client write it (curl -F)",
        code="form_invalid",
    )
