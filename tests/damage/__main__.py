"""Tries the product with damaged files and requests and killed commands, and keeps what falls.

    python -m tests.damage --images 10000 --manifests 3000 --headers 1000 --kills 60 --keep fallen
    python -m tests.damage --requests 10000

Each attempt has to end in a result or in an error of one printable line, without a word of any
library on the terminal, and within --seconds and --memory. Of a kill nothing may be lost: the
bundle answers as before, and the command, repeated, ends as if nothing had been.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from paligemma_edge.runtime.system.linux import usable_cores
from tests.damage.kills import Kills
from tests.damage.pool import Outcome, Trials

KINDS = ("images", "manifests", "headers", "requests", "kills")
_EVERY = 2.0  # seconds between lines of progress


@dataclass
class Tally:
    """What came of the attempts of one kind."""

    kind: str
    ended: Counter[str] = field(default_factory=Counter)
    fallen: int = 0

    def row(self) -> str:
        """A line of the table."""
        ends = ", ".join(f"{count} {name}" for name, count in self.ended.most_common())
        return f"{self.kind:<10}{self.ended.total():>9}{self.fallen:>8}  {ends}"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the attempts; 0 where none fell, else 1."""
    options = parser().parse_args(argv)
    tallies = [tried(kind, numbers, options) for kind, numbers in asked(options).items()]
    print(f"{'':<10}{'attempts':>9}{'fallen':>8}  ended", *(t.row() for t in tallies), sep="\n")
    return int(any(tally.fallen for tally in tallies))


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.damage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help="attempts")
    parser.add_argument("--seed", type=int, default=0, help="decides all attempts")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="default: the cores")
    parser.add_argument("--seconds", type=float, default=5.0, help="limit of an attempt")
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB", help="likewise")
    parser.add_argument("--keep", type=Path, default=Path("fallen"), help="folder of what fell")
    parser.add_argument("--again", type=named, metavar="KIND:N", help="repeat this attempt alone")
    return parser


def named(text: str) -> tuple[str, int]:
    """The kind and the number of an attempt."""
    kind, _, number = text.partition(":")
    if kind not in KINDS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not such as {KINDS[0]}:7")
    return kind, int(number)


def asked(options: argparse.Namespace) -> dict[str, range | list[int]]:
    """The numbers of the attempts of each kind."""
    if options.again:
        kind, number = options.again
        return {kind: [number]}
    counts = {kind: getattr(options, kind) for kind in KINDS}
    return {kind: range(count) for kind, count in counts.items() if count}


def tried(kind: str, numbers: range | list[int], options: argparse.Namespace) -> Tally:
    """Make the attempts of one kind, and keep what fell."""
    tally, told = Tally(kind), monotonic()
    for outcome in _outcomes(kind, numbers, options):
        tally.ended[outcome.ended] += 1
        if outcome.problem is not None:
            tally.fallen += 1
            keep(kind, outcome, options)
        if monotonic() - told > _EVERY:
            told = monotonic()
            done = f"{kind}: {tally.ended.total()} of {len(numbers)}, {tally.fallen} fell"
            print(done, file=sys.stderr, flush=True)
    return tally


def _outcomes(
    kind: str, numbers: range | list[int], options: argparse.Namespace
) -> Iterator[Outcome]:
    if kind == "kills":
        return Kills(options.seed, options.jobs).outcomes(numbers)
    limits = (options.seconds, options.memory << 20)
    return Trials(f"tests.damage.{kind}", options.seed, *limits, options.jobs).outcomes(numbers)


def keep(kind: str, outcome: Outcome, options: argparse.Namespace) -> None:
    """Write what was wrong and how to see it again, and the input beside it."""
    options.keep.mkdir(parents=True, exist_ok=True)
    repeat = f"python -m tests.damage --seed {options.seed} --again {kind}:{outcome.number}"
    path = options.keep / f"{kind}-{options.seed}-{outcome.number}.txt"
    path.write_text(f"{repeat}\n\n{outcome.ended}: {outcome.problem}\n", errors="backslashreplace")
    if outcome.given is not None:
        path.with_suffix(".input").write_bytes(outcome.given)
    last = (outcome.problem or "").strip().splitlines()[-1][:120]
    print(f"{kind}:{outcome.number} fell ({path}): {last!r}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
