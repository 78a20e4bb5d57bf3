"""Asks about a picture, and knows the true answer, in PaliGemma's prompts and output formats.

Knows nothing of tokens' ids, and nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from samples.shapes.pictures import COLOURS, KINDS, SIDE, Box, Picture, Shape

CodeTable: TypeAlias = Mapping[tuple[str, int, int], tuple[int, ...]]
TASKS = ("caption", "answer", "detect", "segment", "ocr")
_CLEAR = 14  # pixels off the middle before a shape is called left, right, top or bottom


@dataclass(frozen=True)
class Thing:
    """One object of an answer: what it is called there, and which shape of the picture it is."""

    label: str
    index: int


@dataclass(frozen=True)
class Question:
    """A prompt and its truth: `things` for detect and segment, `text` for the other tasks."""

    task: str
    prompt: str
    text: str = ""
    things: tuple[Thing, ...] = ()


def ask(picture: Picture, task: str, rng: np.random.Generator) -> Question:
    """A question of one task; `possible` says which tasks a picture allows."""
    return _ASK[task](picture, rng)


def possible(picture: Picture) -> tuple[str, ...]:
    """The tasks that make sense on a picture."""
    shapes = ("answer", "detect", "segment") if picture.shapes else ()
    return ("caption", *shapes, *(("ocr",) if picture.word else ()))


def answer_text(question: Question, picture: Picture, codes: CodeTable) -> str:
    """The text that a model should generate."""
    if question.task not in ("detect", "segment"):
        return question.text
    return " ; ".join(
        _located(question.task, thing, picture.shapes[thing.index], codes)
        for thing in question.things
    )


def locations(box: Box) -> str:
    """A box as four location tokens, <y0><x0><y1><x1>."""
    return "".join(f"<loc{round(edge * 1023 / SIDE):04d}>" for edge in box)


def _located(task: str, thing: Thing, shape: Shape, codes: CodeTable) -> str:
    y0, x0, y1, x1 = shape.box
    segments = codes[shape.kind, y1 - y0, x1 - x0] if task == "segment" else ()
    return (
        locations(shape.box) + "".join(f"<seg{code:03d}>" for code in segments) + f" {thing.label}"
    )


def _caption(picture: Picture, _: np.random.Generator) -> Question:
    return Question("caption", "caption en", describe(picture))


def describe(picture: Picture) -> str:
    """The caption: shapes from left to right; or a word, and the shape above or below it."""
    named = [f"a {s.size} {s.colour} {s.kind}" for s in picture.shapes]
    if picture.word is None:
        return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
    if not named:
        return f"the word {picture.word.text}"
    side = "above" if picture.shapes[0].box[2] <= picture.word.box[0] else "below"
    return f"{named[0]} {side} the word {picture.word.text}"


def _ocr(picture: Picture, _: np.random.Generator) -> Question:
    return Question("ocr", "ocr", picture.word.text if picture.word else "")


def _matching(picture: Picture, name: str) -> list[int]:
    """The shapes that "circle" or "red circle" names, from left to right."""
    return [i for i, s in enumerate(picture.shapes) if name in (s.kind, f"{s.colour} {s.kind}")]


def _some_name(picture: Picture, rng: np.random.Generator) -> str:
    shape = picture.shapes[int(rng.integers(len(picture.shapes)))]
    return shape.kind if rng.random() < 0.4 else f"{shape.colour} {shape.kind}"


def _only_name(shape: Shape, picture: Picture, rng: np.random.Generator) -> str | None:
    """A name that no other shape of the picture answers to."""
    names = [
        n for n in (shape.kind, f"{shape.colour} {shape.kind}") if len(_matching(picture, n)) == 1
    ]
    return str(rng.choice(names)) if names else None


def _detect(picture: Picture, rng: np.random.Generator) -> Question:
    names = [_some_name(picture, rng)]
    other = _some_name(picture, rng)
    if rng.random() < 0.4 and not set(_matching(picture, other)) & set(
        _matching(picture, names[0])
    ):
        names.append(other)
    things = tuple(Thing(name, index) for name in names for index in _matching(picture, name))
    return Question("detect", f"detect {' ; '.join(names)}", things=things)


def _segment(picture: Picture, rng: np.random.Generator) -> Question:
    """One shape that has a name of its own; if there is none, all that share a name."""
    names = [_only_name(shape, picture, rng) for shape in picture.shapes]
    own = [name for name in names if name]
    name = str(rng.choice(own)) if own else _some_name(picture, rng)
    things = tuple(Thing(name, index) for index in _matching(picture, name))
    return Question("segment", f"segment {name}", things=things)


def _answer(picture: Picture, rng: np.random.Generator) -> Question:
    """One of the kinds of question, drawn again until it fits the picture."""
    while True:
        found = _QUESTIONS[int(rng.integers(len(_QUESTIONS)))](picture, rng)
        if found is not None:
            return Question("answer", f"answer en {found[0]}", found[1])


_Pair: TypeAlias = tuple[str, str] | None


def _one(picture: Picture, rng: np.random.Generator) -> tuple[Shape, str | None]:
    shape = picture.shapes[int(rng.integers(len(picture.shapes)))]
    return shape, _only_name(shape, picture, rng)


def _what_colour(picture: Picture, rng: np.random.Generator) -> _Pair:
    shape, _ = _one(picture, rng)
    word = str(rng.choice(["color", "colour"]))
    same = len(_matching(picture, shape.kind))
    return (f"what {word} is the {shape.kind}?", shape.colour) if same == 1 else None


def _what_shape(picture: Picture, rng: np.random.Generator) -> _Pair:
    shape, _ = _one(picture, rng)
    same = sum(s.colour == shape.colour for s in picture.shapes)
    return (f"what shape is {shape.colour}?", shape.kind) if same == 1 else None


def _what_size(picture: Picture, rng: np.random.Generator) -> _Pair:
    shape, name = _one(picture, rng)
    return (f"what size is the {name}?", shape.size) if name else None


def _how_many(picture: Picture, rng: np.random.Generator) -> _Pair:
    if rng.random() < 0.5:
        return "how many shapes are there?", str(len(picture.shapes))
    kind = picture.shapes[0].kind if rng.random() < 0.8 else str(rng.choice(KINDS))
    return f"how many {kind}{'es' if kind == 'cross' else 's'} are there?", str(
        len(_matching(picture, kind))
    )


def _where(picture: Picture, rng: np.random.Generator) -> _Pair:
    shape, name = _one(picture, rng)
    down, right = (c - SIDE / 2 for c in shape.centre)
    if name is None or max(abs(down), abs(right)) < _CLEAR + min(abs(down), abs(right)):
        return None
    sideways = "right" if right > 0 else "left"
    upright = "bottom" if down > 0 else "top"
    return f"where is the {name}?", sideways if abs(right) > abs(down) else upright


def _is_there(picture: Picture, rng: np.random.Generator) -> _Pair:
    """Half of what is asked for is there; what is not may share kind or colour with what is."""
    shape, _ = _one(picture, rng)
    kind, colour = shape.kind, shape.colour
    if rng.random() < 0.5:
        kind = str(rng.choice(KINDS)) if rng.random() < 0.6 else kind
        colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.6 else colour
    found = bool(_matching(picture, f"{colour} {kind}"))
    return f"is there a {colour} {kind}?", "yes" if found else "no"


def _which_side(picture: Picture, rng: np.random.Generator) -> _Pair:
    (one, name), (two, other) = _one(picture, rng), _one(picture, rng)
    if one is two or name is None or other is None:
        return None
    side = str(rng.choice(["left", "right"]))
    return f"is the {name} {side} of the {other}?", "yes" if (one.centre[1] < two.centre[1]) == (
        side == "left"
    ) else "no"


_ASK: Mapping[str, Callable[[Picture, np.random.Generator], Question]] = {
    "caption": _caption,
    "answer": _answer,
    "detect": _detect,
    "segment": _segment,
    "ocr": _ocr,
}
_QUESTIONS = (_what_colour, _what_shape, _what_size, _how_many, _where, _is_there, _which_side)
