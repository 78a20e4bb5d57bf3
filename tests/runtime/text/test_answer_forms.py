"""Answers of any form are read as PaliGemma's demo reads them; where supervision differs is named.

`answer_forms.json` holds what both read; `record_answer_forms.py` writes it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from paligemma_edge.runtime.text.parse_answer import parse_answer
from tests.runtime.text.record_answer_forms import FORMS, SIZE, TEXTS, theirs

RECORDED: dict[str, Any] = json.loads(FORMS.read_text(encoding="utf-8"))["forms"]

# The demo ends at a line break, and takes numbers that are no tokens for places.
NOT_AS_THE_DEMO = {"a line break in text before": ["cat"], "a number that is no location": []}

# supervision wants exactly four locations, one blank and a label of letters, digits, "-" and
# blanks: what has another form is left out or cut there.
NOT_AS_SUPERVISION = {
    "a mask": ["cat"],
    "a cut mask": [""],
    "no label": [""],
    "no label, then one": ["", "dog"],
    "boxes side by side": ["", "dog"],
    "five locations": [""],
    "seven locations": [""],
    "no blank before the label": ["cat"],
    "an apostrophe": ["cat's ear"],
    "a comma": ["cat, dog"],
    "brackets": ["cat (black)"],
    "a number that is no location": [],
}


def ours(name: str) -> list[dict[str, Any]]:
    return [
        {"label": one.label, "xyxy": list(one.box.xyxy_pixels(*SIZE))}
        for one in parse_answer(TEXTS[name]).objects
    ]


def labels(objects: list[dict[str, Any]]) -> list[str]:
    return [one["label"] for one in objects]


def test_all_forms_are_recorded() -> None:
    assert {name: form["text"] for name, form in RECORDED.items()} == TEXTS


@pytest.mark.parametrize("name", TEXTS)
def test_the_demo_reads_the_same(name: str) -> None:
    """But for blanks around a label, and None for no label."""
    demo = [{**one, "label": (one["label"] or "").strip()} for one in RECORDED[name]["demo"]]
    if name in NOT_AS_THE_DEMO:
        assert labels(ours(name)) == NOT_AS_THE_DEMO[name] != labels(demo)
    else:
        assert ours(name) == demo


@pytest.mark.parametrize("name", TEXTS)
def test_supervision_reads_the_same_or_the_difference_is_known(name: str) -> None:
    read = RECORDED[name]["supervision"]
    if name in NOT_AS_SUPERVISION:
        assert labels(ours(name)) == NOT_AS_SUPERVISION[name] != labels(read)
        return
    assert labels(ours(name)) == labels(read)
    for one, other in zip(ours(name), read, strict=True):
        x0, y0, x1, y1 = one["xyxy"]
        sides = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        assert other["xyxy"] == pytest.approx(sides, abs=0.5)  # not rounded, corners in order


@pytest.mark.parametrize("name", TEXTS)
def test_the_installed_supervision_reads_what_is_recorded(name: str) -> None:
    assert theirs(TEXTS[name]) == RECORDED[name]["supervision"]
