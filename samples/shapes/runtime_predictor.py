"""The runtime as a predictor: a bundle, asked by its typed calls."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from paligemma_edge.runtime import ObjectResult, PaliGemma
from paligemma_edge.runtime.encoded_image import EncodedImage
from samples.shapes.scenes import SIDE
from samples.shapes.scoring import Answer, Guess, Predict
from samples.shapes.tasks import ShapesQuestion


def through(model: PaliGemma, *, longest: int = 100) -> Predict:
    """A predictor that looks at an image once and asks it all questions."""

    def predict(image: Image.Image, questions: Sequence[ShapesQuestion]) -> list[Answer]:
        with model.encode(image) as view:
            return [_ask(view, question, longest) for question in questions]

    return predict


def _ask(view: EncodedImage, question: ShapesQuestion, longest: int) -> Answer:
    verb, _, rest = question.prompt.partition(" ")
    if verb == "detect":
        return _guesses(view.detect(rest, max_new_tokens=longest))
    if verb == "segment":
        return _guesses(view.segment(rest, max_new_tokens=longest))
    if verb == "answer":
        language, _, asked = rest.partition(" ")
        return view.ask(asked, language, max_new_tokens=longest).text
    words = view.caption(rest, max_new_tokens=longest) if rest else view.read()
    return words.text


def _guesses(result: ObjectResult) -> list[Guess]:
    return [
        Guess(
            found.label,
            (found.box.y0 * SIDE, found.box.x0 * SIDE, found.box.y1 * SIDE, found.box.x1 * SIDE),
            found.mask,
        )
        for found in result
    ]
