"""Options of a run from Python: what they accept, and what they refuse with a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.run.options import RunOptions


def options(**given: Any) -> RunOptions:  # noqa: ANN401
    given = {"bundle": "mix.bundle", "prompt": "caption en", "paths": ["photo.jpg"], **given}
    return RunOptions(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"paths": "a.jpg"}, r"paths is 'a.jpg', wanted a list of paths such as \['photo.jpg'\]"),
        ({"paths": Path("a.jpg")}, r"paths is PosixPath\('a.jpg'\), wanted a list of paths"),
        ({"paths": ["a.jpg", 3]}, r"paths is \['a.jpg', 3\], wanted a list of paths"),
        ({"paths": ()}, "paths is empty, wanted at least one; name an image or a folder"),
        ({"also": "ocr"}, r"also is 'ocr', wanted a list of texts such as \['caption en'\]"),
        ({"also": None}, "also is None, wanted a list of texts"),
        ({"choices": "abc"}, r"choices is 'abc', wanted a list of texts such as \['yes'\]"),
        ({"choices": iter(["a"])}, "choices is <list_iterator .*>, wanted a list of texts"),
        ({"choices": []}, r"the choices are \(\), wanted answers such as"),
        ({"bundle": None}, "bundle is None, wanted a path; give a str or a Path"),
        ({"out": 3}, "out is 3, wanted a path; give a str or a Path"),
        ({"draw": b"x.png"}, "draw is b'x.png', wanted a path; give a str or a Path"),
    ],
)
def test_values_of_another_kind_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        options(**given)


def test_lists_of_any_kind_are_accepted() -> None:
    listed = options(paths=("a.jpg", Path("b.jpg")), also=("ocr",), choices=("yes", "no"))
    assert listed.prompts == ["caption en", "ocr"]
    assert options(choices=["yes", "no"]).choices == ["yes", "no"]
