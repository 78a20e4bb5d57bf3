"""How long work reports its progress, from any room to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""
