"""The JSON of a request's body as a typed value; whatever is wrong with it is a 400.

Knows msgspec's errors. Knows nothing of what is asked.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from paligemma_edge.runtime.serve.errors import ApiError

T = TypeVar("T")
_PLACE = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)


async def json_body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Read a body and decode it.

    Args:
        request: whose body was not read yet.
        decoder: for the type that is wanted.

    Returns:
        A value of the decoder's type.

    Raises:
        ApiError: 415 for another type than JSON, 400 for what is no JSON or of another form.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415,
            f"the body is {media_type[:60]!r}, wanted JSON; "
            "send it with the header content-type: application/json",
            code="unsupported_media_type",
        )
    return decode_json(await request.body(), decoder)


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a body; ApiError with the field that is wrong, as OpenAI's API names it."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, param = _of_field(str(error))
        raise ApiError(400, message, code="invalid_value", param=param) from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ApiError(
            400, f"the body is not valid JSON in UTF-8: {error}", code="json_invalid"
        ) from None
    except RecursionError:
        raise ApiError(
            400, "the body's JSON is nested too deep, wanted a flat request", code="json_invalid"
        ) from None


def _of_field(problem: str) -> tuple[str, str | None]:
    """What is wrong with which field, of a message of msgspec."""
    match = _PLACE.fullmatch(problem)
    if match is None:
        return f"the body is wrong: {_plain(problem)}", None
    field = match[2].removeprefix(".")
    return f"{field}: {_plain(match[1])}", field


def _plain(problem: str) -> str:
    return problem[:1].lower() + problem[1:].replace("`", "")
