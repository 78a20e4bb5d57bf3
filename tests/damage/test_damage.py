"""A few attempts of each kind, and that what is wrong would be noticed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest

from paligemma_edge.runtime.errors import ImageError, OutputError, PaliGemmaError
from tests.damage.__main__ import main
from tests.damage.attempt import judged
from tests.damage.images import seeds
from tests.damage.misbehaving import Misbehaving
from tests.damage.mutate import mutated_bytes, mutated_json
from tests.damage.pool import Outcome, Trials
from tests.damage.worker import random_of

MODULE = "tests.damage.misbehaving"
PATIENT = ("--seconds", "120", "--jobs", "1")  # no clock decides on a busy machine


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [("images", 150), ("manifests", 25), ("headers", 5), ("requests", 40), ("kills", 2)],
)
def test_nothing_brings_it_down(
    kind: str, attempts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "fallen"
    code = main([f"--{kind}", str(attempts), *PATIENT, "--keep", str(keep)])
    texts = [path.read_text() for path in keep.glob("*.txt")]
    assert code == 0, "\n\n".join(texts)
    assert not keep.exists()
    assert f"{attempts}       0  " in capsys.readouterr().out


def test_every_format_that_is_read_is_damaged() -> None:
    from paligemma_edge.runtime.images.formats import FORMATS, format_of

    found = {kind.name for data in seeds().values() if (kind := format_of(data))}
    assert found == {kind.name for kind in FORMATS}


def test_the_seed_decides_the_damage() -> None:
    data, value = bytes(range(256)), {"a": [1, "b", None], "c": {"d": 0.5}}
    changes: list[Callable[[Random], bytes]] = [
        lambda random: mutated_bytes(data, random),
        lambda random: mutated_json(value, random),
    ]
    for change in changes:
        first, again = ([change(Random(seed)) for seed in range(200)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 100


def raises(error: BaseException) -> Callable[[], str]:
    def use() -> str:
        raise error

    return use


def saying(error: PaliGemmaError, text: str) -> PaliGemmaError:
    """An error whose text got past what makes texts short and harmless."""
    error.args = (text,)
    if isinstance(error, OSError):
        error.strerror = text
    return error


def warns() -> str:
    warnings.warn("of something", RuntimeWarning, stacklevel=1)
    return "read"


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (raises(ValueError("not ours")), "Traceback"),
        (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raises(saying(ImageError(), "two\nlines")), "not one printable line"),
        (raises(saying(ImageError(), "\x1b[2J")), "not one printable line"),
        (raises(saying(OutputError(28, "full"), "x" * 601)), "a message of 601 characters"),
        (warns, "warned: RuntimeWarning: of something"),
    ],
)
def test_what_is_wrong_is_noticed(use: Callable[[], str], problem: str) -> None:
    assert problem in (judged(use)[1] or "")


def test_an_error_in_one_line_is_right() -> None:
    assert judged(raises(ImageError("a.png: cut short"))) == ("ImageError", None)


def number_of(deed: str) -> int:
    """Of the attempt in which it is done."""
    made = (Misbehaving(Path(), Path()).damaged(random_of(0, MODULE, n)).name for n in count())
    return next(number for number, name in enumerate(made) if name == deed)


@pytest.mark.parametrize(
    ("deed", "ended", "problem"),
    [
        ("hang", "no end", "in _hang"),
        ("crash", "crash", "Segmentation fault"),
        ("write", "done", "written to the terminal: of a library"),
        ("take memory", "done", "MiB of memory"),
    ],
)
def test_what_a_process_does_is_noticed(deed: str, ended: str, problem: str) -> None:
    trials = Trials(MODULE, seed=0, seconds=2, memory=256 << 20, jobs=1)
    numbers = [number_of(deed), number_of("behave")]
    fallen, fine = trials.outcomes(numbers)
    assert fallen.ended == ended
    assert problem in (fallen.problem or "")
    assert fallen.given == deed.encode()
    assert fine == Outcome(numbers[1], "done", None)  # by the same process, or the next
