"""Options of a run from Python: what they accept, and what they refuse with a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.sampling import TopSampling
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
        ({"paths": ()}, "PATHS is missing, wanted at least one; name an image or a folder"),
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "PROMPT is missing, such as 'caption en'; or give --questions FILE"),
        ({"questions": "q.jsonl"}, "--questions names the images .* leave out PROMPT and PATHS"),
        ({"questions": "q.jsonl", "prompt": "", "paths": []}, ".* leave out PROMPT$"),
        ({"images": "photos"}, "--images has no effect without --questions"),
        ({"seed": 0}, "--seed has no effect without --temperature"),
        ({"top_k": 3}, "--top-k has no effect without --temperature"),
        ({"top_p": 0.5}, "--top-p has no effect without --temperature"),
        ({"overwrite": True}, "--overwrite has no effect without --out or --draw"),
        ({"labels": "asked"}, "--labels is about objects, and no prompt is `detect` or `segment`"),
        ({"unconstrained": True}, "--unconstrained is about objects"),
        ({"min_confidence": 0.5}, "--min-confidence is about objects"),
        ({"prompt": "detect cat", "min_confidence": 1.5}, "--min-confidence is 1.5, wanted a num"),
        ({"raw": True, "json": True}, "--raw does not go with --json"),
        ({"choices": ["a", "b"], "max_new_tokens": 3}, "--choices does not go with --max-new-tok"),
        ({"prompt": "detect cat", "stream": True}, "--stream prints words .*give --raw for the"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        options(**given)


def test_questions_stand_for_prompts_and_paths() -> None:
    asked = RunOptions(bundle="mix.bundle", questions="q.jsonl", min_confidence=0.5)
    assert (asked.prompts, asked.paths) == ([], ())
    with pytest.raises(OptionError, match="--questions does not go with --also"):
        RunOptions(bundle="mix.bundle", questions="q.jsonl", also=["ocr"])


def test_sampling_has_its_defaults_where_only_a_temperature_is_given() -> None:
    assert options().sampling() is None
    assert options(temperature=0.5).sampling() == TopSampling(0.5, 0, 1.0, 0)
    assert options(temperature=0.5, top_k=3, seed=7).sampling() == TopSampling(0.5, 3, 1.0, 7)


def test_lists_of_any_kind_are_accepted() -> None:
    listed = options(paths=("a.jpg", Path("b.jpg")), also=("ocr",), choices=("yes", "no"))
    assert listed.prompts == ["caption en", "ocr"]
    assert options(choices=["yes", "no"]).choices == ["yes", "no"]


def test_scalars_of_numpy_are_python_s_own() -> None:
    own: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.25,
        "seed": 1,
        "max_new_tokens": 8,
    }
    given: dict[str, Any] = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(4),
        "top_p": np.float16(0.25),
        "seed": np.uint64(1),
        "max_new_tokens": np.int8(8),
    }
    words: dict[str, Any] = {
        "bundle": "b",
        "prompt": "caption en",
        "paths": ["a.png"],
        "json": True,
    }
    of_numpy = words | {
        "json": np.True_,
        "prompt": np.str_("caption en"),
        "stream": np.False_,
        "raw": np.False_,
    }
    made = RunOptions(**of_numpy, **given)
    assert made == RunOptions(**words, **own)
    kept = {name: getattr(made, name) for name in (*own, "prompt", "json", "stream")}
    assert json.loads(json.dumps(kept)) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": "no"}, "json is 'no', wanted True or False"),
        ({"stream": 1}, "stream is 1, wanted True or False"),
        ({"max_new_tokens": np.True_}, "--max-new-tokens is True"),
        ({"temperature": np.True_}, "temperature is True"),
        ({"prompt": np.int64(3)}, "prompt is 3, wanted a text"),
        ({"adapter": 3}, "adapter is 3, wanted a text"),
        ({"out": "a\0.csv"}, "holds a NUL byte"),
    ],
)
def test_a_value_of_another_kind_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**given)
