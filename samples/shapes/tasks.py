"""Makes questions about a scene with their true answers, in PaliGemma's formats.

Knows nothing of token ids, and nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from samples.shapes.scenes import COLOURS, KINDS, SIDE, Box, Scene, Shape

CodeTable: TypeAlias = Mapping[tuple[str, int, int], tuple[int, ...]]
TASKS = ("caption", "answer", "detect", "segment", "ocr")
OBJECT_TASKS = ("detect", "segment")
_TWO_LABELS = {"detect": 0.5, "segment": 0.35}  # of the prompts ask for two labels, if possible
_ABSENT = 0.25  # of these prompts ask for something that is not there
_CLEAR = 14  # pixels off the middle before a shape is called left, right, top or bottom


@dataclass(frozen=True)
class NamedShape:
    """One object of an answer: the label it has there, and the number of its shape."""

    label: str
    index: int


@dataclass(frozen=True)
class ShapesQuestion:
    """A prompt and its truth: `objects` for detect and segment, `text` for the other tasks."""

    task: str
    prompt: str
    text: str = ""
    objects: tuple[NamedShape, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What a prompt to detect or segment asks for; of other tasks nothing."""
        if self.task not in OBJECT_TASKS:
            return ()
        return tuple(self.prompt.removeprefix(f"{self.task} ").split(" ; "))

    @property
    def absent(self) -> tuple[str, ...]:
        """The labels of the prompt that nothing in the scene has."""
        present = {named.label for named in self.objects}
        return tuple(label for label in self.labels if label not in present)


def make_question(scene: Scene, task: str, rng: np.random.Generator) -> ShapesQuestion:
    """A question for one task; `possible_tasks` says which tasks a scene allows."""
    return _TASK_QUESTIONS[task](scene, rng)


def possible_tasks(scene: Scene) -> tuple[str, ...]:
    """The tasks that make sense for a scene."""
    shapes = ("answer", "detect", "segment") if scene.shapes else ()
    return ("caption", *shapes, *(("ocr",) if scene.word else ()))


def answer_text(question: ShapesQuestion, scene: Scene, codes: CodeTable) -> str:
    """The text that a model should generate."""
    if question.task not in OBJECT_TASKS:
        return question.text
    return " ; ".join(
        _object_text(question.task, named, scene.shapes[named.index], codes)
        for named in question.objects
    )


def location_tokens(box: Box) -> str:
    """A box as four location tokens, <y0><x0><y1><x1>."""
    return "".join(f"<loc{round(edge * 1023 / SIDE):04d}>" for edge in box)


def _object_text(task: str, named: NamedShape, shape: Shape, codes: CodeTable) -> str:
    y0, x0, y1, x1 = shape.box
    segments = codes[shape.kind, y1 - y0, x1 - x0] if task == "segment" else ()
    return (
        location_tokens(shape.box)
        + "".join(f"<seg{code:03d}>" for code in segments)
        + f" {named.label}"
    )


def _caption(scene: Scene, _: np.random.Generator) -> ShapesQuestion:
    return ShapesQuestion("caption", "caption en", caption_text(scene))


def caption_text(scene: Scene) -> str:
    """The caption: shapes from left to right; or a word, and the shape above or below it."""
    named = [f"a {s.size} {s.colour} {s.kind}" for s in scene.shapes]
    if scene.word is None:
        return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
    if not named:
        return f"the word {scene.word.text}"
    side = "above" if scene.shapes[0].box[2] <= scene.word.box[0] else "below"
    return f"{named[0]} {side} the word {scene.word.text}"


def _ocr(scene: Scene, _: np.random.Generator) -> ShapesQuestion:
    return ShapesQuestion("ocr", "ocr", scene.word.text if scene.word else "")


def _matching(scene: Scene, name: str) -> list[int]:
    """Numbers of the shapes called "circle" or "red circle", from left to right."""
    return [i for i, s in enumerate(scene.shapes) if name in (s.kind, f"{s.colour} {s.kind}")]


def _only_name(shape: Shape, scene: Scene, rng: np.random.Generator) -> str | None:
    """A name that fits no other shape of the scene."""
    names = [
        n for n in (shape.kind, f"{shape.colour} {shape.kind}") if len(_matching(scene, n)) == 1
    ]
    return str(rng.choice(names)) if names else None


def _present_name(scene: Scene, task: str, rng: np.random.Generator) -> str:
    """A kind or a colour and kind; to segment, one that fits a single shape if there is one."""
    names = [_only_name(shape, scene, rng) for shape in scene.shapes]
    if task == "segment" and any(names):
        return str(rng.choice([name for name in names if name]))
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    return shape.kind if rng.random() < 0.4 else f"{shape.colour} {shape.kind}"


def _absent_name(scene: Scene, rng: np.random.Generator) -> str:
    """A name that fits no shape; mostly it shares kind or colour with one that is there."""
    while True:
        shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
        kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
        names = [f"{colour} {shape.kind}", f"{shape.colour} {kind}", kind, f"{colour} {kind}"]
        name = str(rng.choice(names, p=[0.3, 0.25, 0.3, 0.15]))
        if not _matching(scene, name):
            return name


def _asked_names(scene: Scene, task: str, rng: np.random.Generator) -> list[str]:
    """One label or two, of which no shape has both."""
    count = 2 if rng.random() < _TWO_LABELS[task] else 1
    absent = int(rng.choice([1, count], p=[0.75, 0.25])) if rng.random() < _ABSENT else 0
    names: list[str] = []
    for _ in range(20):  # the only shape of a scene has no second label
        names = [_absent_name(scene, rng) for _ in range(absent)]
        names += [_present_name(scene, task, rng) for _ in range(count - absent)]
        if not _share_a_shape(scene, names):
            return [names[place] for place in rng.permutation(count)]
    return names[:1]


def _share_a_shape(scene: Scene, names: list[str]) -> bool:
    """Whether two names are the same, or fit the same shape."""
    found = [index for name in names for index in _matching(scene, name)]
    return len(set(names)) < len(names) or len(set(found)) < len(found)


def _find(task: str, scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    """Objects in the order of the prompt, those of one label from left to right."""
    names = _asked_names(scene, task, rng)
    objects = tuple(NamedShape(name, index) for name in names for index in _matching(scene, name))
    return ShapesQuestion(task, f"{task} {' ; '.join(names)}", objects=objects)


def _answer(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    """One of the kinds of question, drawn again until it fits the scene."""
    while True:
        pair = _QUESTIONS[int(rng.integers(len(_QUESTIONS)))](scene, rng)
        if pair is not None:
            return ShapesQuestion("answer", f"answer en {pair[0]}", pair[1])


_Pair: TypeAlias = tuple[str, str] | None  # question and answer; None: not for this scene


def _pick_shape(scene: Scene, rng: np.random.Generator) -> tuple[Shape, str | None]:
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    return shape, _only_name(shape, scene, rng)


def _what_colour(scene: Scene, rng: np.random.Generator) -> _Pair:
    shape, _ = _pick_shape(scene, rng)
    word = str(rng.choice(["color", "colour"]))
    same = len(_matching(scene, shape.kind))
    return (f"what {word} is the {shape.kind}?", shape.colour) if same == 1 else None


def _what_shape(scene: Scene, rng: np.random.Generator) -> _Pair:
    shape, _ = _pick_shape(scene, rng)
    same = sum(s.colour == shape.colour for s in scene.shapes)
    return (f"what shape is {shape.colour}?", shape.kind) if same == 1 else None


def _what_size(scene: Scene, rng: np.random.Generator) -> _Pair:
    shape, name = _pick_shape(scene, rng)
    return (f"what size is the {name}?", shape.size) if name else None


def _how_many(scene: Scene, rng: np.random.Generator) -> _Pair:
    if rng.random() < 0.5:
        return "how many shapes are there?", str(len(scene.shapes))
    kind = scene.shapes[0].kind if rng.random() < 0.8 else str(rng.choice(KINDS))
    return f"how many {kind}{'es' if kind == 'cross' else 's'} are there?", str(
        len(_matching(scene, kind))
    )


def _where(scene: Scene, rng: np.random.Generator) -> _Pair:
    shape, name = _pick_shape(scene, rng)
    down, right = (c - SIDE / 2 for c in shape.centre)
    if name is None or max(abs(down), abs(right)) < _CLEAR + min(abs(down), abs(right)):
        return None
    sideways = "right" if right > 0 else "left"
    upright = "bottom" if down > 0 else "top"
    return f"where is the {name}?", sideways if abs(right) > abs(down) else upright


def _is_there(scene: Scene, rng: np.random.Generator) -> _Pair:
    """The shape exists half of the time; else it may share kind or colour with one that does."""
    shape, _ = _pick_shape(scene, rng)
    kind, colour = shape.kind, shape.colour
    if rng.random() < 0.5:
        kind = str(rng.choice(KINDS)) if rng.random() < 0.6 else kind
        colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.6 else colour
    exists = bool(_matching(scene, f"{colour} {kind}"))
    return f"is there a {colour} {kind}?", "yes" if exists else "no"


def _which_side(scene: Scene, rng: np.random.Generator) -> _Pair:
    (one, name), (two, other) = _pick_shape(scene, rng), _pick_shape(scene, rng)
    if one is two or name is None or other is None:
        return None
    side = str(rng.choice(["left", "right"]))
    return f"is the {name} {side} of the {other}?", "yes" if (one.centre[1] < two.centre[1]) == (
        side == "left"
    ) else "no"


_TASK_QUESTIONS: Mapping[str, Callable[[Scene, np.random.Generator], ShapesQuestion]] = {
    "caption": _caption,
    "answer": _answer,
    "detect": partial(_find, "detect"),
    "segment": partial(_find, "segment"),
    "ocr": _ocr,
}
_QUESTIONS = (_what_colour, _what_shape, _what_size, _how_many, _where, _is_there, _which_side)
