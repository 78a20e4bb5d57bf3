"""The typed calls on the sample model: encoded once, many questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma_edge import Choices, ObjectResult, PaliGemma
from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.errors import ImageError, OptionError, PaliGemmaError, PromptError
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.results.confidence import object_log_prob


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    """Two shapes, of which the first is named in the prompts of its folder."""
    return shapes_images / "00.png"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of the vision encoder was given."""
    counts: list[int] = []
    encode = Engine.encode

    def counted(engine: Engine, pixels: Any, stop: Any = None) -> Any:  # noqa: ANN401
        counts.append(len(pixels))
        return encode(engine, pixels, stop)

    monkeypatch.setattr(Engine, "encode", counted)
    return counts


def test_an_image_is_encoded_once_for_all_its_questions(
    shapes_model: PaliGemma, image: Path, counts: list[int]
) -> None:
    with shapes_model.encode(image) as encoded:
        answers = [
            encoded.caption().text,
            encoded.ask("how many shapes are there?").text,
            encoded.detect("star ; circle").text,
            encoded.generate("caption en").text,
            "".join(encoded.stream("caption en")),
            encoded.classify("answer en is there a circle?", ["yes", "no"]).text,
        ]
    assert counts == [1]
    alone = [
        shapes_model.caption(image).text,
        shapes_model.ask(image, "how many shapes are there?").text,
        shapes_model.detect(image, "star ; circle").text,
        shapes_model.generate(image, "caption en").text,
        "".join(shapes_model.stream(image, "caption en")),
        shapes_model.classify(image, "answer en is there a circle?", ["yes", "no"]).text,
    ]
    assert answers == alone
    assert len(counts) == 7


def test_a_batch_encodes_an_image_once_whatever_its_name(
    shapes_model: PaliGemma, image: Path, tmp_path: Path, counts: list[int]
) -> None:
    copy = tmp_path / "copy.bmp"
    load_image(image).save(copy)
    prompts = [(image, "caption en"), (copy, "caption en"), (image, "ocr")]
    batch = shapes_model.generate_batch(prompts, max_new_tokens=4)
    assert counts == [1]
    assert batch[0] == batch[1]


def test_the_words_are_those_of_the_whole_prompt(shapes_model: PaliGemma, image: Path) -> None:
    question = "what shape is yellow?"
    whole = shapes_model.generate(image, f"answer en {question}")
    answered = shapes_model.ask(image, question)
    for name in ("prompt", "text", "confidence", "log_prob"):
        assert getattr(answered, name) == getattr(whole, name)
    assert shapes_model.ocr(image).prompt == "ocr"
    assert str(shapes_model.caption(image)) == shapes_model.generate(image, "caption en").text


def test_objects_have_boxes_masks_and_scores_of_their_own(
    shapes_model: PaliGemma, shapes_images: Path
) -> None:
    truth = shapes_images / ".02-masks.png"
    result = shapes_model.segment(shapes_images / "02.png", "black star")
    generation = shapes_model.generate(shapes_images / "02.png", "segment black star")
    assert result.text == generation.text
    assert [f.label for f in result] == ["black star"]
    for found in result:
        assert found.mask is not None and found.mask.shape == load_image(truth).size[::-1]
        x0, y0, x1, y1 = found.xyxy
        assert found.mask[y0:y1, x0:x1].sum() == found.mask.sum() > 0
    (parts,) = generation.object_log_probs
    assert len(parts.corners) == 4 and len(parts.codes) == 16 and len(parts.label) >= 2
    assert result[0].log_prob == pytest.approx(object_log_prob(parts))
    (boxed,) = shapes_model.detect(shapes_images / "02.png", "black star")
    assert boxed.confidence == pytest.approx(result[0].confidence, abs=0.2)
    assert result.log_prob == pytest.approx(np.mean(generation.log_probs))


def test_an_answer_that_was_cut_keeps_what_parsed(shapes_model: PaliGemma, image: Path) -> None:
    whole = shapes_model.detect(image, "star ; circle ; square")
    assert whole.finish_reason == "stop"
    for limit in range(1, 16):
        cut = shapes_model.detect(image, "star ; circle ; square", max_new_tokens=limit)
        assert cut.text and whole.text.startswith(cut.text)
        kept = [(found.label, found.xyxy) for found in cut]
        assert kept == [(found.label, found.xyxy) for found in whole][: len(kept)]


def test_an_object_that_was_cut_is_left_out(shapes_model: PaliGemma, image: Path) -> None:
    whole = shapes_model.segment(image, "purple star")
    assert [found.label for found in whole] == ["purple star"]
    seen = set()
    for limit in range(4, 24):
        cut = shapes_model.segment(image, "purple star", max_new_tokens=limit)
        seen.add(len(cut))
        assert all(found.label == "purple star" and found.mask is not None for found in cut)
    assert seen == {0, 1}


def test_the_most_likely_choice_is_taken_and_each_has_the_score_of_its_own_answer(
    shapes_model: PaliGemma, image: Path
) -> None:
    prompt, choices = "answer en what shape is yellow?", ["circle", "square ring", "square", "star"]
    with shapes_model.encode(image) as encoded:
        result = encoded.classify(prompt, choices)
        alone = [encoded.classify(prompt, [choice]).log_probs[choice] for choice in choices]
        said = encoded.generate(prompt, grammar=Choices(("star",)))
    assert list(result.log_probs) == choices
    assert list(result.log_probs.values()) == pytest.approx(alone, abs=1e-6)
    assert result.text == "star" == max(choices, key=lambda choice: result.log_probs[choice])
    assert result.log_probs["star"] == pytest.approx(sum(said.log_probs), abs=1e-4)


def test_without_a_mask_decoder_boxes_are_given_and_the_reason(
    shapes_model: PaliGemma, image: Path
) -> None:
    pipeline = shapes_model._loaded.pipeline
    sessions = {k: v for k, v in pipeline.engine.sessions.items() if k != "mask_decoder"}
    blind = replace(pipeline, engine=replace(pipeline.engine, sessions=sessions))
    encoded = shapes_model.encode(image)
    assert encoded.segment("star").notes == ()
    encoded._pipeline = blind
    result = encoded.segment("star")
    assert len(result) and all(found.mask is None for found in result)
    assert "<seg" in result.text
    (note,) = result.notes
    assert "--mask-decoder vae-oid.npz" in note


@pytest.mark.parametrize("prompt", ["caption en", "detect star ; circle", "segment star"])
def test_a_whole_prompt_is_answered_as_its_task(
    shapes_model: PaliGemma, image: Path, prompt: str
) -> None:
    answer = shapes_model.run(image, prompt)
    verb, _, rest = prompt.partition(" ")
    assert answer.to_dict() == getattr(shapes_model, verb)(image, rest).to_dict()


def test_a_grammar_is_on_unless_it_is_not_wanted(shapes_model: PaliGemma, image: Path) -> None:
    odd = "zebra crossing"
    answered = shapes_model.detect(image, odd, labels="asked")
    assert {found.label for found in answered} <= {odd}
    free = shapes_model.detect(image, odd, constrained=False)
    assert free.text == shapes_model.generate(image, f"detect {odd}").text


def test_several_images_have_no_box(shapes_model: PaliGemma, image: Path) -> None:
    both = shapes_model.encode(image, image)
    assert both.ask("how many shapes are there?").text
    with pytest.raises(OptionError, match="2 images were given, wanted one"):
        both.detect("circle")


def test_an_encoded_image_that_was_closed_says_so(shapes_model: PaliGemma, image: Path) -> None:
    with shapes_model.encode(image) as encoded:
        pass
    with pytest.raises(OptionError, match="encoded image was closed"):
        encoded.caption()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.detect(""), PromptError, "asks for nothing"),
        (lambda v: v.detect(["a;b"]), PromptError, "holds ';'"),
        (lambda v: v.segment([f"label {n}" for n in range(999)]), PromptError, "shorten"),
        (lambda v: v.ask(" "), PromptError, "the question is"),
        (lambda v: v.caption("e n"), PromptError, "the language is"),
        (lambda v: v.caption(max_new_tokens=0), OptionError, "max_new_tokens is 0"),
        (lambda v: v.generate("caption en", grammar="yes"), OptionError, "grammar is 'yes'"),
        (
            lambda v: v.generate("caption en", grammar=EncodedImage),
            OptionError,
            "grammar is <class",
        ),
        (lambda v: v.classify("caption en", []), OptionError, "wanted answers"),
        (lambda v: v.classify("caption en", "red"), OptionError, "choices are 'red', wanted"),
        (lambda v: v.classify("caption en", 5), OptionError, "choices are 5, wanted"),
    ],
)
def test_what_cannot_be_answered_is_reported_in_one_line(
    shapes_model: PaliGemma,
    image: Path,
    call: Any,  # noqa: ANN401
    error: type[PaliGemmaError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        call(shapes_model.encode(image))
    assert "\n" not in str(caught.value)


def test_an_image_is_read_when_it_is_encoded(shapes_model: PaliGemma) -> None:
    with pytest.raises(ImageError, match="the given bytes"):
        shapes_model.encode(b"none")


def test_a_result_shows_its_image(shapes_model: PaliGemma, image: Path) -> None:
    result = shapes_model.detect(image, "star ; circle")
    assert isinstance(result, ObjectResult) and len(result)
    drawn = result.draw()
    assert drawn.size == load_image(image).size
    assert (np.asarray(drawn) != np.asarray(load_image(image))).any()
    html = result._repr_html_()
    assert html is not None and html.startswith("<")


def test_the_seconds_of_the_image_count_for_the_answer_that_came_first(
    shapes_model: PaliGemma, image: Path
) -> None:
    encoded = shapes_model.encode(image)
    first, second = (encoded.generate("caption en", max_new_tokens=2) for _ in range(2))
    assert {"preprocess", "vision", "projector", "prefill", "steps"} == set(first.seconds)
    assert set(second.seconds) == {"prefill", "steps"}
