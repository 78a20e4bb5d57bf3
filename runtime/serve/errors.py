"""Errors as clients read them: a status, and OpenAI's nested body.

Knows which of our errors are about what a client sent. Whatever else went wrong is told to the log
alone: a message of a library may quote memory or paths.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from paligemma_edge.runtime.errors import (
    DeviceError,
    ImageError,
    MissingExtraError,
    OptionError,
    PaliGemmaError,
    PromptError,
)
from paligemma_edge.runtime.scheduling.errors import (
    CancelledError,
    ClosingError,
    QueueFullError,
    QueueTimeoutError,
    SupersededError,
)

_LOG = logging.getLogger("paligemma_edge.serve")

RETRY_SECONDS = 2  # after which a full queue is worth another try


class ApiError(PaliGemmaError):
    """What a client is told in place of an answer.

    Args:
        status: of HTTP.
        message: one line: what was found, what was wanted, what to do.
        type: OpenAI's kind of error, such as "invalid_request_error".
        code: what a program tells it by, such as "model_not_found".
        param: the field that it is about.
        retry_after: seconds after which to try again.
        retry: False where another try of the same is of no use, which OpenAI's clients heed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the name on the wire
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param = status, type, code, param
        self.retry_after, self.retry = retry_after, retry

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if not self.retry:
            headers["x-should-retry"] = "false"
        return headers


@dataclass(frozen=True)
class _Kind:
    """How errors of one class are told."""

    status: int
    type: str
    code: str
    retry: bool = True


# The first that fits; what is no part of it is told to the log alone.
_KINDS: tuple[tuple[type[Exception], _Kind], ...] = (
    (ImageError, _Kind(400, "invalid_request_error", "image_unreadable")),
    (PromptError, _Kind(400, "invalid_request_error", "prompt_invalid")),
    (OptionError, _Kind(400, "invalid_request_error", "option_invalid")),
    (MissingExtraError, _Kind(400, "invalid_request_error", "not_installed")),
    (QueueTimeoutError, _Kind(504, "timeout_error", "deadline", retry=False)),
    (SupersededError, _Kind(409, "invalid_request_error", "superseded", retry=False)),
    (CancelledError, _Kind(499, "invalid_request_error", "cancelled", retry=False)),
)


def error_body(error: ApiError) -> bytes:
    """The body of an error, in OpenAI's form."""
    fields = {
        "message": str(error),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return json.dumps({"error": fields}).encode()


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; one that is not its own doing goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return _overloaded(error)
    if isinstance(error, ClosingError):
        return ApiError(
            503, str(error), type="overloaded_error", code="closing", retry_after=RETRY_SECONDS
        )
    for kind, told in _KINDS:
        if isinstance(error, kind):
            return ApiError(
                told.status, str(error), type=told.type, code=told.code, retry=told.retry
            )
    if isinstance(error, DeviceError):
        _LOG.error("the device failed: %s", error)
        return ApiError(
            503,
            "the device failed while it answered; the log of the server says why",
            type="overloaded_error",
            code="device_error",
            retry_after=RETRY_SECONDS,
        )
    _LOG.error("a request failed", exc_info=error)
    return ApiError(
        500,
        "the server failed while it answered; its log says why",
        type="server_error",
        code="internal_error",
        retry=False,
    )


def _overloaded(error: QueueFullError) -> ApiError:
    status, kind = (429, "rate_limit_error") if error.of_client else (503, "overloaded_error")
    return ApiError(status, str(error), type=kind, code="queue_full", retry_after=RETRY_SECONDS)
