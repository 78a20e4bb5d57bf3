"""Asks a bundle about things that are there and things that are not, and keeps how sure it was.

An answer may leave a label out: it is then asked again, held to name an object of that label. Where
the prompt asks for several labels, each of them is tried where an object has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge import Generation
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.grammar.base import EndState, Grammar, State
from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.confidence import ObjectLogProbs
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from samples.shapes.scenes import SIDE, draw
from samples.shapes.scoring import FloatBox, box_iou
from samples.shapes.tasks import make_question

SEED = 6  # of the questions
OVERLAP = 0.5  # IoU from which on a box is the object's
_MAX_NEW_TOKENS = 100


@dataclass(frozen=True)
class ScoredObject:
    """An object of an answer."""

    parts: ObjectLogProbs
    box: FloatBox  # y0, x0, y1, x1 in pixels
    asked_log_prob: float  # of its label, among those that the prompt asks for
    right: bool  # whether it lies on a thing that has its label


@dataclass(frozen=True)
class AskedLabel:
    """A label of a question, what was answered to it, and whether such a thing is there."""

    question: int
    task: str
    label: str
    present: bool
    objects: tuple[ScoredObject, ...]
    forced: ObjectLogProbs | None  # of the object that it names where it has to, if it names none


@dataclass(frozen=True)
class AtLeastOne:
    """A grammar whose answers begin with an object of this label."""

    label: str
    masks: bool

    def start(self, encoder: PromptEncoder) -> State:
        """The state before an answer, where it may not end."""
        return _Begun(ObjectGrammar((self.label,), self.masks).start(encoder), encoder)


@dataclass(frozen=True)
class _Begun:
    state: State
    encoder: PromptEncoder

    @property
    def allowed(self) -> NDArray[np.intp]:
        allowed = self.state.allowed
        assert allowed is not None
        return np.setdiff1d(allowed, self.encoder.config.eos_ids).astype(np.intp)

    def after(self, token: int) -> State:
        return self.state.after(token)


@dataclass(frozen=True)
class Exactly:
    """A grammar with one answer."""

    tokens: tuple[int, ...]

    def start(self, encoder: PromptEncoder) -> State:
        """The state before the answer."""
        return _Told(self.tokens, EndState(encoder.config.eos_ids))


@dataclass(frozen=True)
class _Told:
    left: tuple[int, ...]
    end: EndState

    @property
    def allowed(self) -> NDArray[np.intp]:
        return np.array(self.left[:1], np.intp)

    def after(self, token: int) -> State:
        assert token == self.left[0]
        return _Told(self.left[1:], self.end) if self.left[1:] else self.end


def ask(pipeline: Pipeline, count: int) -> Iterator[AskedLabel]:
    """Ask about so many held-out scenes, for boxes and for masks of the same things."""
    features = ImageFeatureCache(pipeline.engine)
    for number in range(count):
        scene = draw("held_out", number)
        if not scene.shapes:
            continue
        question = make_question(scene, "detect", np.random.default_rng([SEED, number]))
        labels = Task.of(question.prompt).classes
        things: dict[str, list[FloatBox]] = {label: [] for label in labels}
        for named in question.objects:
            things[named.label].append(scene.shapes[named.index].box)
        images = pipeline.read_images([scene.image()])
        for task in (Task.detect(labels), Task.segment(labels)):
            yield from _Asked(pipeline, features, images, task, number, things).labels()


@dataclass(frozen=True)
class _Asked:
    """A question about an image, and where the things are that it asks for."""

    pipeline: Pipeline
    features: ImageFeatureCache
    images: ImageBatch
    task: Task
    number: int
    things: Mapping[str, Sequence[FloatBox]]

    def labels(self) -> Iterator[AskedLabel]:
        said = self._say(ObjectGrammar(None, self.task.masks))
        for label, boxes in self.things.items():
            objects, forced = tuple(self._objects(said, label)), None
            if not objects:
                held = self._say(AtLeastOne(label, self.task.masks)).object_log_probs
                forced = held[0] if held else None
            verb = "segment" if self.task.masks else "detect"
            yield AskedLabel(self.number, verb, label, bool(boxes), objects, forced)

    def _say(self, grammar: Grammar) -> Generation:
        options = GenerationOptions(max_new_tokens=_MAX_NEW_TOKENS, grammar=grammar)
        request = self.pipeline.request(self.task.prompt, 1, options)
        return self.pipeline.answer_one(request.about(self.images), self.features)

    def _objects(self, said: Generation, label: str) -> Iterator[ScoredObject]:
        """The objects of an answer that have this label."""
        answer = said.answer
        for parsed, span, parts in zip(
            answer.objects, answer.spans, said.object_log_probs, strict=True
        ):
            if parsed.label == label:
                x0, y0, x1, y1 = (share * SIDE for share in parsed.xyxy_normalized)
                box = (y0, x0, y1, x1)
                right = any(box_iou(thing, box) >= OVERLAP for thing in self.things[label])
                before = answer.text[: span[1]].removesuffix(label).rstrip()
                yield ScoredObject(parts, box, self._among_asked(before, label), right)

    def _among_asked(self, before: str, label: str) -> float:
        """Log-probability of a label after this text, among those that the prompt asks for."""
        if len(self.things) == 1:
            return 0.0
        log_probs = {one: self._log_prob(before, one) for one in self.things}
        return log_probs[label] - float(np.logaddexp.reduce(list(log_probs.values())))

    def _log_prob(self, before: str, label: str) -> float:
        write = self.pipeline.encoder.continuation
        start, told = write(before), self._say(Exactly(write(f"{before} {label}")))
        return sum(told.log_probs[len(start) : -1])
