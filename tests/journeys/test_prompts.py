"""The same text means the same ids, those of transformers, however it is asked.

What is compared are the ids that the decoder gets: through the command line, `generate`, a stream,
whole prompts and typed calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from transformers import PaliGemmaProcessor

from paligemma_edge import PaliGemma, PromptError
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.engine.engine import Engine
from tests.house.imports import ROOT

Ids: TypeAlias = tuple[int, ...]
IMAGE_TOKENS = 64  # of the sample model
WORDS = [
    *("", " ", "\t", "  \t ", "\n", " \n", "\n\n", "\r\n"),
    *("caption en", "caption en\n", "caption en\n\n", "caption en\r\n", "\ncaption en"),
    *("caption en ", " caption en", "\tcaption en", "caption  en", "caption\ten"),
    *("Caption EN", "CAPTION EN", "ocr", "OCR", "answer en how many?", "answer de wie viele?"),
    *("Where is the cow standing?", "what is this", "describe en", "cap de", "question en a b?"),
    *(
        "naïve café",
        "nai\u0308ve cafe\u0301",
        "ｆｕｌｌ ｗｉｄｔｈ",
        "ﬁ ligature",
        "Straße",
        "İstanbul",
    ),
    *("日本語", "العربية", "emoji 😀👩\u200d👧", "nbsp\u00a0here", "zero\u200bwidth", "\ufeffmark"),
    *("caption <loc0000><loc0511><loc1023><loc0007>", "<loc0001>", "a<seg000>b <seg127>"),
    *("<loc1024> <loc12> <seg128>", "<LOC0001>", "a <b> c", "</s>", "detecting star"),
    *("line one\nline two", "line one\n\n\nline two", "x" * 200, " " * 40 + "C", "▁ block"),
]
OBJECTS = [
    *("detect star", "detect star;circle", "detect star ; circle", "detect star ;circle"),
    *("detect  star", "detect star ", "detect star\n", "detect star;", "detect star, circle"),
    *("segment star", "segment star;star", "Detect Star", "DETECT STAR", "detect STAR ; Star"),
    *("detect all classes", "segment red circle ; blue square", "detect cafe\u0301"),
    *("detect star <loc0000>", "segment <loc0001><loc0002><loc0003><loc0004>", "detect a<seg001>"),
    *("detect\tstar", "detect star\tcircle"),
]
PROMPTS = [*WORDS, *OBJECTS]
BLANK_BEFORE = [" detect star", "\tsegment star", "\ndetect star"]


@cache
def processor() -> Any:  # noqa: ANN401 - untyped there
    return PaliGemmaProcessor.from_pretrained(ROOT / "samples/shapes/checkpoint")


def transformers_ids(text: str, images: int = 1) -> Ids:
    """The ids after those of the images."""
    image = np.zeros((4, 4, 3), np.uint8)
    inputs = processor()(text=text, images=[[image] * images])
    (ids,) = inputs["input_ids"]
    marker = processor().image_token_id
    assert ids[: images * IMAGE_TOKENS] == [marker] * (images * IMAGE_TOKENS)
    return tuple(ids[images * IMAGE_TOKENS :])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Ids]:
    """The ids of all prompts that a decoder got, in order."""
    seen: list[Ids] = []
    original = Engine.prefill

    def prefill(
        self: Engine,
        cache: Any,  # noqa: ANN401
        slot: int,
        features: Any,  # noqa: ANN401
        ids: Sequence[int],
        stop: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        seen.append(tuple(ids))
        return original(self, cache, slot, features, ids, stop)

    monkeypatch.setattr(Engine, "prefill", prefill)
    return seen


@pytest.fixture
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def test_there_are_many_prompts() -> None:
    assert len({*PROMPTS, *BLANK_BEFORE}) >= 60


def test_calls_ask_what_transformers_asks(
    shapes_model: PaliGemma, image: Path, asked: list[Ids]
) -> None:
    """A whole prompt, `generate` and a stream."""
    prompts = [*PROMPTS, *BLANK_BEFORE]
    with shapes_model.encode(image) as encoded:
        for prompt in prompts:
            result = encoded.run(prompt, max_new_tokens=1)
            assert result.prompt == prompt
            encoded.generate(prompt, max_new_tokens=1)
            list(encoded.stream(prompt, max_new_tokens=1))
    wanted = [transformers_ids(prompt) for prompt in prompts]
    assert asked == [ids for ids in wanted for _ in range(3)]


def test_the_command_line_asks_what_transformers_asks(
    shapes_bundle: Path, image: Path, asked: list[Ids], capsys: pytest.CaptureFixture[str]
) -> None:
    first, *more = [*PROMPTS, *BLANK_BEFORE]
    also = [f"--also={prompt}" for prompt in more]
    command = ["run", str(shapes_bundle), first, str(image), *also, "--max-new-tokens", "1"]
    assert cli.main(command) == 0
    assert asked == [transformers_ids(prompt) for prompt in (first, *more)]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["", " ", "caption en\n", "detect star;circle"])
def test_one_prompt_of_a_command_is_asked_as_typed(
    prompt: str, shapes_bundle: Path, image: Path, asked: list[Ids]
) -> None:
    assert cli.main(["run", str(shapes_bundle), prompt, str(image), "--max-new-tokens", "1"]) == 0
    assert asked == [transformers_ids(prompt)]


@pytest.mark.parametrize(
    ("call", "prompt"),
    [
        (lambda one: one.detect("star;circle"), "detect star;circle"),
        (lambda one: one.detect("star ; circle"), "detect star ; circle"),
        (lambda one: one.detect(["star", "circle"]), "detect star ; circle"),
        (lambda one: one.detect("star, circle"), "detect star, circle"),
        (lambda one: one.detect(["star, circle"]), "detect star, circle"),
        (lambda one: one.detect([" red  star ", "red star"]), "detect red star"),
        (lambda one: one.detect(" star"), "detect  star"),
        (lambda one: one.detect("star\n"), "detect star\n"),
        (lambda one: one.detect("star <loc0001>"), "detect star <loc0001>"),
        (lambda one: one.segment("Star;"), "segment Star;"),
        (lambda one: one.segment(("STAR", "star")), "segment STAR ; star"),
        (lambda one: one.ask("how many?\n"), "answer en how many?\n"),
        (lambda one: one.ask(" <loc0001> what?", "de"), "answer de  <loc0001> what?"),
        (lambda one: one.caption("de"), "caption de"),
        (lambda one: one.ocr(), "ocr"),
        (lambda one: one.classify("", ["yes", "no"]), ""),
        (lambda one: one.classify("is it?\n", ["yes", "no"]), "is it?\n"),
    ],
)
def test_typed_calls_ask_what_transformers_asks(
    call: Callable[[Any], Any],
    prompt: str,
    shapes_model: PaliGemma,
    image: Path,
    asked: list[Ids],
) -> None:
    with shapes_model.encode(image) as encoded:
        assert call(encoded).prompt == prompt
    assert asked == [transformers_ids(prompt)]


@pytest.mark.parametrize(
    ("prompt", "same_as"),
    [
        ("<image>detect star", "<image>detect star"),
        ("<image> detect star", "<image> detect star"),
        ("<image>", "<image>"),
        ("<image>\n", "<image>\n"),
        # The processor gives these two of `<bos>`, though it once asked for one to be written.
        ("<image><bos>detect star", "<image>detect star"),
        ("<bos>detect star", "<image>detect star"),
        ("<image><bos>", "<image>"),
    ],
)
def test_markers_and_a_bos_before_the_text_are_those_of_every_prompt(
    prompt: str, same_as: str, shapes_bundle: Path, image: Path, asked: list[Ids]
) -> None:
    with PaliGemma(shapes_bundle, device="cpu") as model:
        model.generate(image, prompt, max_new_tokens=1)
        model.encode(image).run(prompt, max_new_tokens=1)
    assert cli.main(["run", str(shapes_bundle), prompt, str(image), "--max-new-tokens", "1"]) == 0
    assert asked == [transformers_ids(same_as)] * 3


def test_two_images_have_two_markers_or_none(
    shapes_model: PaliGemma, image: Path, shapes_images: Path, asked: list[Ids]
) -> None:
    with shapes_model.encode(image, shapes_images / "01.png") as both:
        for prefix in ("", "<image><image>", "<image><image><bos>"):
            both.generate(f"{prefix}what differs?\n", max_new_tokens=1)
    assert asked == [transformers_ids("<image><image>what differs?\n", images=2)] * 3


@pytest.mark.parametrize("prompt", ["detect <image>star", "<bos><image>ocr", "<image><image>ocr"])
def test_markers_elsewhere_are_refused(prompt: str, shapes_model: PaliGemma, image: Path) -> None:
    with pytest.raises(PromptError, match="leave the markers out"):
        shapes_model.generate(image, prompt)


@pytest.mark.parametrize("labels", [["star;circle"], ["star", "a;b"], ["<loc0001>"], ["a<b"]])
def test_a_label_of_a_list_is_never_split(
    labels: Sequence[str], shapes_model: PaliGemma, image: Path
) -> None:
    with pytest.raises(PromptError, match="which end a label in an answer"):
        shapes_model.detect(image, labels)
