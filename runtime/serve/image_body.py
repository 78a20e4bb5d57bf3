"""The bytes of an image, as a client writes them: base64, a data: URI, or a part of a form.

Addresses are never fetched. Knows texts and media types. What is in the bytes the images' own
reader decides.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping

from paligemma_edge.runtime.images.formats import format_of
from paligemma_edge.runtime.serve.errors import ApiError

# Each format's media types, its own first: what IANA lists, then what browsers and cameras write.
MEDIA_TYPES: Mapping[str, tuple[str, ...]] = {
    "JPEG": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "PNG": ("image/png", "image/apng", "image/x-png"),
    "WEBP": ("image/webp",),
    "BMP": ("image/bmp", "image/x-bmp", "image/x-ms-bmp"),
    "GIF": ("image/gif",),
    "TIFF": ("image/tiff",),
    "AVIF": ("image/avif", "image/avif-sequence"),
}
_UNNAMED = ("", "application/octet-stream", "binary/octet-stream")
_DATA_URI = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE)  # base64 has no colon
_WANTED = "wanted the bytes of an image file in base64"


def image_of_text(text: str, param: str) -> bytes:
    """The bytes that a text stands for: base64, or a data: URI of it.

    Args:
        text: such as "iVBORw0KGgo..." or "data:image/png;base64,iVBORw0KGgo...".
        param: the field's name in an error, such as "image".

    Returns:
        What was encoded; it need not be an image.

    Raises:
        ApiError: 400; the text is neither, or is an address, which is never fetched.

    Example:
        >>> image_of_text("R0lGODdh", "image")
        b'GIF87a'
    """
    if _ADDRESS.match(text):
        return image_of_url(text, param)
    return _decoded(text, param)


def image_of_url(url: str, param: str) -> bytes:
    """The bytes of a data: URI, the only kind of address that is taken.

    Args:
        url: such as "data:image/png;base64,iVBORw0KGgo...".
        param: the field's name in an error, such as "messages[0].content[1].image_url.url".

    Returns:
        What was encoded; its first bytes are not those of another format than the URI says.

    Raises:
        ApiError: 400; it is no data: URI in base64, or its media type is that of other bytes.

    Source: https://www.rfc-editor.org/rfc/rfc2397

    Example:
        >>> image_of_url("data:image/gif;base64,R0lGODdh", "image")
        b'GIF87a'
    """
    head = _DATA_URI.match(url)
    if head is None:
        raise _refused(
            f"{param} is {url[:40]!r}, {_WANTED} as data:image/jpeg;base64,...; "
            "addresses are not fetched, send the image itself",
            "image_url_invalid",
            param,
        )
    media_type, parameters = head[1].strip().lower(), head[2].lower()
    if not parameters.endswith(";base64"):
        raise _refused(
            f"{param} is a data: URI without base64, {_WANTED} as data:image/jpeg;base64,...",
            "image_url_invalid",
            param,
        )
    data = _decoded(url[head.end() :], param)
    _check_media_type(media_type, data, param)
    return data


def _decoded(text: str, param: str) -> bytes:
    """Strictly: other decoders skip what they do not know, and see another image than we do."""
    if not text:
        raise _refused(f"{param} is empty, {_WANTED}", "image_base64_invalid", param)
    try:
        if len(text) % 4 or text.endswith("==="):  # which strict mode lets pass
            raise ValueError
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error is one; what is not ASCII is another
        raise _refused(
            f"{param} is no base64, {_WANTED}: the standard alphabet, padded with '=', without "
            "blanks and line breaks (base64 -w0 writes it)",
            "image_base64_invalid",
            param,
        ) from None


def _check_media_type(media_type: str, data: bytes, param: str) -> None:
    if media_type in _UNNAMED:
        return
    if not media_type.startswith("image/"):
        raise _refused(
            f"{param} is of the type {media_type[:60]!r}, wanted image/jpeg or another of images",
            "image_type_invalid",
            param,
        )
    found = format_of(data)
    of_others = any(media_type in types for types in MEDIA_TYPES.values())
    if found is not None and of_others and media_type not in MEDIA_TYPES[found.name]:
        raise _refused(
            f"{param} says {media_type}, and its bytes are a {found.name}; "
            f"write {MEDIA_TYPES[found.name][0]}",
            "image_type_invalid",
            param,
        )


def _refused(message: str, code: str, param: str) -> ApiError:
    return ApiError(400, message, code=code, param=param)
