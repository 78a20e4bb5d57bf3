"""Why a job was not answered, beside what is wrong with the question itself."""

from __future__ import annotations

from paligemma_edge.runtime.errors import PaliGemmaError


class NotAnsweredError(PaliGemmaError):
    """A job was given up; the question may be asked again."""


class QueueFullError(NotAnsweredError):
    """Too much is waiting; `of_client` says whether it is this client's own share."""

    def __init__(self, message: str, *, of_client: bool) -> None:
        super().__init__(message)
        self.of_client = of_client


class QueueTimeoutError(NotAnsweredError):
    """The deadline passed while the job waited for a slot."""


class SupersededError(NotAnsweredError):
    """A newer job of the same client took its place in the queue."""


class CancelledError(NotAnsweredError):
    """Whoever asked does not want the answer any more."""


class ClosingError(NotAnsweredError):
    """The scheduler takes no more jobs."""
