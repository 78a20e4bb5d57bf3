"""What answers a run's queries on the sample model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.images.batch import ImageReader
from paligemma_edge.runtime.run.answer import among_choices, in_slots
from paligemma_edge.runtime.run.queries import AnswerQueries, Query
from paligemma_edge.runtime.run.sources import Source
from paligemma_edge.runtime.timing import Stopwatch

PROMPTS = ("answer en is there a yellow star?", "answer en is there a black circle?")


@pytest.mark.parametrize("kind", ["choices", "slots"])
def test_copies_of_an_image_are_encoded_once_for_all_prompts(
    shapes_model: PaliGemma, shapes_images: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    runs: list[int] = []
    encode = Engine.encode

    def counted(engine: Engine, pixels: Any, stop: Any = None) -> Any:  # noqa: ANN401
        runs.append(len(pixels))
        return encode(engine, pixels, stop)

    monkeypatch.setattr(Engine, "encode", counted)
    answers = (
        among_choices(shapes_model._loaded.pipeline, PROMPTS, ["yes", "no"])
        if kind == "choices"
        else in_slots(
            shapes_model._loaded.pipeline,
            PROMPTS,
            slots=2,
            max_new_tokens=4,
            sampling=None,
            grammar=None,
            objects=ObjectOptions(),
        )
    )
    texts = ask(shapes_model, answers.answer, shapes_images / "00.png")
    assert runs == [1]
    assert (
        texts[:2]
        == texts[2:]
        == [shapes_model.generate(shapes_images / "00.png", p).text for p in PROMPTS]
    )


def ask(model: PaliGemma, answer: AnswerQueries, image: Path) -> list[str]:
    """The texts about two copies of an image, both prompts each."""
    config = model.bundle.manifest.image
    queries = [
        Query(2 * copy + place, Source(str(copy), str(image)), images, prompt, 2)
        for copy in range(2)
        for images in [ImageReader(config).read([image], Stopwatch())]
        for place, prompt in enumerate(PROMPTS)
    ]
    found = {query.number: result.text for query, result in answer(queries)}
    return [found[number] for number in sorted(found)]
