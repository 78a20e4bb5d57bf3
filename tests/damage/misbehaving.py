"""What must be noticed, done on purpose: the tests of the attempts are about it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from tests.damage.attempt import Damaged


def _hang() -> None:
    while True:
        pass


def _crash() -> None:
    ctypes.string_at(0)


def _write() -> None:
    os.write(2, b"of a library")


def _take_memory() -> None:
    with mmap.mmap(-1, 512 << 20) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1


def _behave() -> None:
    return


DEEDS: Mapping[str, Callable[[], None]] = {
    "hang": _hang,
    "crash": _crash,
    "write": _write,
    "take memory": _take_memory,
    "behave": _behave,
}


class Misbehaving:
    """Hangs, crashes, writes to the terminal, takes memory, or behaves."""

    def __init__(self, prepared: Path, own: Path) -> None:
        pass

    @staticmethod
    def prepare(folder: Path) -> None:
        """Nothing is needed."""

    def damaged(self, random: Random) -> Damaged:
        """The name of a deed."""
        name = random.choice(list(DEEDS))
        return Damaged(name, name.encode())

    def use(self, damaged: Damaged) -> str:
        """Do it."""
        DEEDS[damaged.name]()
        return "done"


KIND = Misbehaving
