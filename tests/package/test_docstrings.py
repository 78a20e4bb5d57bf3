"""What an IDE shows of each public call: arguments, results, errors, an example."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import paligemma_edge
from paligemma_edge import BatchCalls, EncodedImage, PaliGemma, PaliGemmaError

CALLED = (PaliGemma, EncodedImage, BatchCalls)


def public_calls() -> Iterator[Any]:
    yield pytest.param(paligemma_edge.run_images, id="run_images")
    for kind in CALLED:
        for name, call in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                yield pytest.param(call, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize("call", list(public_calls()))
def test_a_public_call_says_what_it_takes_gives_and_raises(call: Any) -> None:  # noqa: ANN401
    text, signature = inspect.getdoc(call) or "", inspect.signature(call)
    names = [name for name in signature.parameters if name != "self"]
    if not names:
        return
    assert "Raises:" in text
    assert ("Returns:" in text) == (signature.return_annotation != "None")
    described = text.partition("Args:")[2].partition("Returns:")[0]
    assert re.findall(r"^ {4}(\w+)(?:, \w+)*:", described, re.MULTILINE) == names
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", ["PaliGemma", "EncodedImage", "BatchCalls", "RunOptions"])
def test_a_public_class_has_an_example(name: str) -> None:
    assert "Example:" in (inspect.getdoc(getattr(paligemma_edge, name)) or "")


def test_the_model_says_what_images_and_threads_may_be() -> None:
    text = inspect.getdoc(PaliGemma) or ""
    for part in ("red, green, blue", "uint8", "Threads may share", "cuda_graph", "with a unit"):
        assert part in text
    parameters = set(inspect.signature(PaliGemma).parameters)
    assert parameters == set(re.findall(r"^    (\w+):", text, re.MULTILINE)) & parameters


@pytest.mark.parametrize("name", [n for n in paligemma_edge.__all__ if n.endswith("Error")])
def test_an_error_says_what_it_is(name: str) -> None:
    kind = getattr(paligemma_edge, name)
    assert issubclass(kind, PaliGemmaError)
    assert inspect.getdoc(kind)
