"""A process that makes attempts of one kind, one after the other, and is killed where one hangs.

    python -m tests.damage.worker MODULE PREPARED OWN SEED SECONDS MEMORY

Reads the number of an attempt in each line of standard input, and answers with a line of JSON.
What the product itself writes to either stream, whatever library writes it, is kept in a file.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.damage.attempt import Damaged, Kind, judged

_SPARE = 16 << 30  # bytes of addresses beyond the limit, after which the machine is in danger


def random_of(seed: int, module: str, number: int) -> Random:
    """What decides everything about an attempt."""
    return Random(f"{seed} {module} {number}")


@dataclass(frozen=True)
class Limits:
    """Of an attempt; that of memory is about what is resident."""

    seconds: float
    memory: int  # bytes


def make(kind: Kind, damaged: Damaged, limits: Limits, output: Path) -> tuple[str, str | None]:
    """One attempt, watched: how it ended, and what was wrong."""
    os.truncate(output, 0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of memory
    with output.open("ab", buffering=0) as watch:
        faulthandler.dump_traceback_later(limits.seconds, exit=True, file=watch)
        ended, problem = judged(lambda: kind.use(damaged))
        faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    if problem is None and (written := output.read_text(errors="backslashreplace")):
        problem = f"written to the terminal: {written}"
    if problem is None and (peak := _peak_memory()) > limits.memory:
        problem = f"{peak >> 20} MiB of memory"
    return ended, problem


def _peak_memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def main(module: str, prepared: str, own: str, seed: str, *limits: str) -> None:
    seconds, memory = limits
    limit = Limits(float(seconds), int(memory))
    resource.setrlimit(resource.RLIMIT_AS, (limit.memory + _SPARE,) * 2)
    answers = os.fdopen(os.dup(1), "w")
    output = Path(own).with_suffix(".txt")
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    faulthandler.enable()
    kind: Kind = importlib.import_module(module).KIND(Path(prepared), Path(own))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        damaged = kind.damaged(random_of(int(seed), module, int(line)))
        output.with_suffix(".input").write_bytes(damaged.data)
        ended, problem = make(kind, damaged, limit, output)
        print(json.dumps([ended, problem]), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
