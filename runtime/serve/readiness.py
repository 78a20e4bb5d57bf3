"""Whether the server takes questions: not before its model answered, and no more once it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paligemma_edge.runtime.serve.errors import RETRY_SECONDS, ApiError

Phase = Literal["loading", "ready", "stopping"]


@dataclass
class Readiness:
    """In which phase of its life the server is."""

    phase: Phase = "loading"

    def check(self) -> None:
        """ApiError where it is not ready."""
        if self.phase != "ready":
            doing = "the model is loading" if self.phase == "loading" else "the server is stopping"
            raise ApiError(
                503,
                f"{doing}; try again soon",
                type="overloaded_error",
                code=self.phase,
                retry_after=RETRY_SECONDS,
            )
