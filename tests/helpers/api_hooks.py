"""What schemathesis cannot know of our API; it loads this as SCHEMATHESIS_HOOKS.

Most of what it makes up is no image, and few requests would get past that. So images are put into
requests, and what would be refused for the company that it keeps is taken out.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.failures import AcceptedNegativeData, ServerError

from paligemma_edge.runtime.serve.image_body import MEDIA_TYPES

_FOLDER = Path(__file__).parents[2] / "samples" / "images"
FILES = [path.read_bytes() for path in sorted(_FOLDER.glob("0[0-3].png"))]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
_SPARED = 5  # of so many requests one is sent as it is
_TOKENS = 12
settled: set[str] = set()  # ids of cases that were changed

for media_types in MEDIA_TYPES.values():
    schemathesis.openapi.media_type(media_types[0], st.sampled_from(FILES))


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext,
    case: schemathesis.Case[Any],
    kwargs: dict[str, Any],
) -> None:
    """Let a request be about an image."""
    if case.method != "POST" or _is_meant_wrong(case):
        return
    number = sum(map(ord, case.id))
    if number % _SPARED == 0:
        return
    settled.add(case.id)
    file = number % len(FILES)
    if case.media_type == "application/json":
        case.query = {}
        _settle(case.body, TEXTS[file])
        _settle_chat(case.body, TEXTS[file])
    elif case.media_type == "multipart/form-data":
        case.query = {}
        _settle(case.body, FILES[file])
    else:
        _settle(case.query, None)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,
    failure: Exception,
    case: schemathesis.Case[Any],
    response: schemathesis.Response,
) -> bool:
    """Drop what is as it should be.

    What was valid and was changed here is no invalid request, 413 and 431 are refusals too, and a
    time limit that is asked for, and passes, is a 504 as it is promised.
    """
    if isinstance(failure, ServerError):
        return response.status_code != 504
    if isinstance(failure, AcceptedNegativeData):
        return response.status_code < 400 and case.id not in settled
    return True


def _is_meant_wrong(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_negative


def _settle(fields: Any, image: str | bytes | None) -> None:  # noqa: ANN401
    """Valid fields stay as they are; those that no server of one small model can honour go."""
    if not isinstance(fields, dict):
        return
    for name in ("model", "timeout", "image_id"):
        fields.pop(name, None)
    if "prompt" in fields:
        fields.pop("prompts", None)  # which are its other form
    if isinstance(fields.get("max_new_tokens"), int):
        fields["max_new_tokens"] = min(fields["max_new_tokens"], _TOKENS)
    if image is not None and isinstance(fields.get("image"), str | bytes):
        fields["image"] = image


def _settle_chat(fields: Any, image: str) -> None:  # noqa: ANN401
    """The last message is of a user who asks about an image."""
    if isinstance(fields, dict) and isinstance(fields.get("messages"), list):
        url = {"url": f"data:image/png;base64,{image}"}
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "caption en"}]
        fields["messages"].append({"role": "user", "content": content})
        if isinstance(fields.get("paligemma"), dict):
            fields["paligemma"].pop("timeout", None)
