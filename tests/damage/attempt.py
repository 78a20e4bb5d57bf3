"""What any attempt with damaged input may end in: a result, or an error in one printable line."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol
from unicodedata import category

from paligemma_edge.runtime.errors import PaliGemmaError

LONGEST_LINE = 600  # characters


@dataclass(frozen=True)
class Damaged:
    """What is given to the product in one attempt."""

    name: str  # for the file in which it is kept where it brought something down
    data: bytes
    about: str = ""  # what else is needed to repeat it by hand


class Kind(Protocol):
    """A kind of damage: prepared once, then tried again and again in several processes."""

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write what all processes read."""

    def __init__(self, prepared: Path, own: Path) -> None:
        """Make ready in a process; `own` is an empty folder of this process alone."""

    def damaged(self, random: Random) -> Damaged:
        """The input of an attempt, which depends on `random` alone."""

    def use(self, damaged: Damaged) -> str:
        """Give it to the product and say how it ended; any exception of the product passes."""


def judged(use: Callable[[], str]) -> tuple[str, str | None]:
    """How an attempt ended, in a word, and what was wrong with that; None where nothing was."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ended, problem = _judged(use)
    if problem is None and warned:
        problem = f"warned: {warned[0].category.__name__}: {warned[0].message}"
    return ended, problem


def _judged(use: Callable[[], str]) -> tuple[str, str | None]:
    try:
        return use(), None
    except PaliGemmaError as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return type(error).__name__, unfit_line(text)
    except BaseException:  # whatever it is, it is what is looked for
        return "fell", traceback.format_exc()


def unfit_line(text: str) -> str | None:
    """Why a text is no message for a terminal; None where it is one."""
    if not text or not all(one.isprintable() or category(one) == "Zs" for one in text):
        return f"a message that is not one printable line: {text[:LONGEST_LINE]!r}"
    if len(text) > LONGEST_LINE:
        return f"a message of {len(text)} characters: {text[:LONGEST_LINE]!r}"
    return None


class Wrong(Exception):  # noqa: N818 - not an error of the program
    """The product ended in peace, and what it did was wrong."""
