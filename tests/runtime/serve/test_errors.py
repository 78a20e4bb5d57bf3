"""What clients are told of errors: their own faults in full, ours not at all."""

from __future__ import annotations

import json
import logging

import pytest

from paligemma_edge.runtime.errors import (
    BundleError,
    DeviceError,
    ImageError,
    OptionError,
    PromptError,
)
from paligemma_edge.runtime.scheduling.errors import (
    ClosingError,
    QueueFullError,
    QueueTimeoutError,
    SupersededError,
)
from paligemma_edge.runtime.serve.errors import ApiError, as_api_error, error_body

SECRET = "at 0x7f001234"


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after", "should_retry"),
    [
        (ImageError("x"), 400, "image_unreadable", None, None),
        (PromptError("x"), 400, "prompt_invalid", None, None),
        (OptionError("x"), 400, "option_invalid", None, None),
        (QueueFullError("x", of_client=False), 503, "queue_full", "2", None),
        (QueueFullError("x", of_client=True), 429, "queue_full", "2", None),
        (QueueTimeoutError("x"), 504, "deadline", None, "false"),
        (SupersededError("x"), 409, "superseded", None, "false"),
        (ClosingError("x"), 503, "closing", "2", None),
    ],
)
def test_each_kind_has_a_status_and_a_code(
    error: Exception, status: int, code: str, retry_after: str | None, should_retry: str | None
) -> None:
    told = as_api_error(error)
    assert (told.status, told.code) == (status, code)
    assert told.headers.get("retry-after") == retry_after
    assert told.headers.get("x-should-retry") == should_retry
    body = json.loads(error_body(told))["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"] == "x"


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeviceError(SECRET), 503), (BundleError(SECRET), 500), (KeyError(SECRET), 500)],
)
def test_what_is_not_the_clients_fault_is_for_the_log_alone(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "paligemma_edge.serve"):
        told = as_api_error(error)
    assert told.status == status
    assert SECRET not in error_body(told).decode()
    assert SECRET in caplog.text


def test_an_error_for_a_client_stays_as_it_is() -> None:
    error = ApiError(404, "no such model", code="model_not_found", param="model")
    assert as_api_error(error) is error
    assert json.loads(error_body(error))["error"]["param"] == "model"
