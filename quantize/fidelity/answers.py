"""What a variant answers to a question: its greedy answer, the objects in it, and its logits.

Knows one open model and one question at a time. Knows nothing of the other variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.fidelity.overlap import EvalObject
from paligemma_edge.quantize.fidelity.questions import Question
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.engine.replay import EncodedPrompt, greedy, replay
from paligemma_edge.runtime.errors import NonFiniteLogitsError, PromptError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.text.parse_answer import ParsedObject, parse_answer


@dataclass(frozen=True, eq=False)
class EvalAnswer:
    """A greedy answer. `masks` is float32 [objects with codes, 64, 64], as they were decoded."""

    tokens: tuple[int, ...]
    text: str
    width: int  # of the image, in pixels
    height: int
    detections: tuple[ParsedObject, ...]
    masks: NDArray[np.float32] | None  # None where the variant has no mask decoder

    def objects(self, *, masked: bool = False) -> list[EvalObject]:
        """The detected objects, in pixels; `masked` for only those that have a mask."""
        decoded = iter(self.masks if self.masks is not None else ())
        objects = []
        for detection in self.detections:
            mask = None if detection.codes is None else next(decoded, None)
            if mask is not None or not masked:
                objects.append(self._object(detection, mask))
        return objects

    def _object(self, detection: ParsedObject, mask: NDArray[np.float32] | None) -> EvalObject:
        box, width, height = detection.box, self.width, self.height
        pixels = (box.y0 * height, box.x0 * width, box.y1 * height, box.x1 * width)
        pasted = None if mask is None else inside(paste_mask(mask, box, width, height))
        return EvalObject(detection.label, pixels, pasted)


@dataclass(frozen=True, eq=False)
class EvalRequest:
    """A question as one open model sees it."""

    model: LoadedModel
    question: Question
    size: tuple[int, int]  # width and height of the image
    prompt: EncodedPrompt
    limit: int  # tokens of an answer

    @classmethod
    def encode(cls, model: LoadedModel, question: Question, max_new_tokens: int) -> EvalRequest:
        """Read the image and encode it. ImageError or PromptError where that cannot be done."""
        config = model.bundle.manifest
        image = model.pipeline.read_images([question.image])
        prompt = model.pipeline.encode(image, question.prompt)
        room = config.model.max_length - prompt.length
        if room < 1:
            raise PromptError(
                f"the prompt {question.prompt[:40]!r} leaves no room for an answer; shorten it"
            )
        return cls(model, question, (image.width, image.height), prompt, min(room, max_new_tokens))

    def answer(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The greedy answer: each token with the logits that it was chosen from.

        They are float32 [answer tokens], valid until the next ones are computed.
        """
        eos_ids = self.model.bundle.manifest.tokenizer.eos_ids
        tokens = greedy(
            self.model.engine,
            self.prompt,
            self.limit,
            eos_ids,
            choose=lambda row: int(self._finite(row).argmax()),
        )
        for token, row in tokens:
            yield token, row.answer_logits

    def forced(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The logits before each token of a given answer, valid as in `answer`."""
        return map(self._finite, replay(self.model.engine, self.prompt, tokens))

    def decode(self, tokens: Sequence[int]) -> EvalAnswer:
        """An answer of this model with the objects in it, masks decoded."""
        text = self.model.encoder.decode(tokens)
        detections = parse_answer(text).objects
        return EvalAnswer(tuple(tokens), text, *self.size, detections, self._masks(detections))

    def _masks(self, detections: Sequence[ParsedObject]) -> NDArray[np.float32] | None:
        if not self.model.engine.decodes_masks:
            return None
        codes = [d.codes for d in detections if d.codes is not None]
        if not codes:
            return np.zeros((0, 64, 64), np.float32)
        return self.model.engine.decode_masks(np.asarray(codes, np.int64))

    def _finite(self, row: Row) -> NDArray[np.float32]:
        """The logits of answer tokens; NonFiniteLogitsError where one is NaN or infinite."""
        logits = row.answer_logits
        if not np.isfinite(logits).all():
            raise NonFiniteLogitsError(
                f"variant {self.model.variant} produced logits that are NaN or infinite "
                f"for {self.question.prompt[:40]!r} about {self.question.image.name}, wanted "
                "finite ones; use a recipe that computes in float32"
            )
        return logits
