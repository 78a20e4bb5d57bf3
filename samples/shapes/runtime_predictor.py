"""The runtime as a predictor: a bundle through its typed calls."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from paligemma_edge import ObjectResult, PaliGemma
from paligemma_edge.runtime.encoded_image import EncodedImage
from samples.shapes.scenes import SIDE
from samples.shapes.scoring import FloatBox, ParsedAnswer, PredictedObject, Predictor
from samples.shapes.tasks import ShapesQuestion


def make_predictor(model: PaliGemma, *, max_new_tokens: int = 100) -> Predictor:
    """A predictor that encodes each image once for all its questions."""

    def predict(image: Image.Image, questions: Sequence[ShapesQuestion]) -> list[ParsedAnswer]:
        with model.encode(image) as encoded:
            return [_answer(encoded, question, max_new_tokens) for question in questions]

    return predict


def _answer(image: EncodedImage, question: ShapesQuestion, max_new_tokens: int) -> ParsedAnswer:
    verb, _, rest = question.prompt.partition(" ")
    if verb == "detect":
        return _predicted_objects(image.detect(rest, max_new_tokens=max_new_tokens))
    if verb == "segment":
        return _predicted_objects(image.segment(rest, max_new_tokens=max_new_tokens))
    if verb == "answer":
        language, _, text = rest.partition(" ")
        return image.ask(text, language, max_new_tokens=max_new_tokens).text
    if verb == "caption":
        return image.caption(rest, max_new_tokens=max_new_tokens).text
    return image.ocr().text


def _predicted_objects(result: ObjectResult) -> list[PredictedObject]:
    return [PredictedObject(d.label, _pixels(d.xyxy_normalized), d.mask) for d in result]


def _pixels(corners: FloatBox) -> FloatBox:
    x0, y0, x1, y1 = (corner * SIDE for corner in corners)
    return y0, x0, y1, x1
