"""What an open model makes of the golden question, beside what the original makes of it.

Knows how the original reads it, and its answer where `verify` asked. Knows nothing of the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paligemma_edge.runtime.bundle.golden import (
    GOLDEN,
    Golden,
    OriginalAnswer,
    pixel_grid,
    required_agreement,
    same_pixels,
)
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.results.generation import Generation


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """What a device answered to the golden question, beside what the original answered."""

    original: OriginalAnswer
    token_ids: tuple[int, ...]
    text: str
    agreement: float  # share of tokens that are the original's, each after the original's own
    required: float  # 1 in a float32 variant

    @property
    def agrees(self) -> bool:
        """Whether enough of the tokens are the original's."""
        return self.agreement >= self.required


@dataclass(frozen=True, kw_only=True)
class GoldenCheck:
    """A variant that is open, and what it makes of its bundle's golden question, if it has one."""

    variant: str
    golden: Golden | None
    misread: tuple[str, ...] = ()  # of image, prompt and ends, what is not the original's
    answer: GoldenAnswer | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing that can be compared differs."""
        return not self.misread and (self.answer is None or self.answer.agrees)

    def summary(self) -> str:
        """What could be compared, in part of a sentence."""
        if self.answer is not None:
            return (
                f"{self.variant} agrees with the original on {self.answer.agreement:.0%} of "
                f"{len(self.answer.original.token_ids)} tokens, wanted {self.answer.required:.0%}"
            )
        read = "" if self.golden is None or self.misread else ", reads image and prompt rightly"
        return (
            f"{self.variant} can be opened here{read}; there is no golden answer to compare "
            "(`paligemma-edge verify` makes one, where the checkpoint is)"
        )

    def differences(self) -> list[str]:
        """Lines with what is not the original's."""
        lines, answer = list(self.misread), self.answer
        if answer is not None and answer.token_ids != answer.original.token_ids:
            lines += [f"original: {answer.original.text!r}", f"here:     {answer.text!r}"]
        return lines


def check_golden(model: LoadedModel, progress: Progress = no_progress) -> GoldenCheck:
    """Let an open model read and answer the golden question of its bundle, where there is one.

    BundleError where the question is unreadable, DeviceError where the device fails.
    """
    if GOLDEN not in model.bundle.manifest.files:
        return GoldenCheck(variant=model.variant, golden=None)
    golden = Golden.read(model.bundle)
    return GoldenCheck(
        variant=model.variant,
        golden=golden,
        misread=tuple(_misread(model, golden)),
        answer=_golden_answer(model, golden, progress),
    )


def _golden_answer(model: LoadedModel, golden: Golden, progress: Progress) -> GoldenAnswer | None:
    original = golden.answer
    if original is None:
        return None
    progress("asking the golden question", 0, 1)
    answer = _answer(model, golden, original)
    same = answer.token_ids == original.token_ids
    return GoldenAnswer(
        original=original,
        token_ids=answer.token_ids,
        text=answer.text,
        agreement=1.0 if same else _agreement(model, golden, original),
        required=required_agreement(model.bundle.manifest.variants[model.variant]),
    )


def _misread(model: LoadedModel, golden: Golden) -> Iterator[str]:
    """What the manifest makes of the question that the original does not."""
    (pixels,) = model.pipeline.read_images([model.bundle.file(golden.image)]).pixel_values
    if not same_pixels(pixel_grid(pixels), golden.pixel_grid):
        yield "the image's pixel values are not the original's: see `image` in the manifest"
    ids = tuple(model.encoder.encode(golden.prompt, 1))
    if ids != golden.prompt_ids:
        yield f"the prompt's token ids are {ids}, the original's {golden.prompt_ids}"
    ends = model.bundle.manifest.tokenizer.eos_ids
    if ends != golden.eos_ids:
        yield (
            f"the ids that end an answer are {ends}, the original's {golden.eos_ids}: "
            "see `eos_ids` in the manifest"
        )


def _answer(model: LoadedModel, golden: Golden, original: OriginalAnswer) -> Generation:
    """What the model answers by itself, in as many tokens as the original at most."""
    options = GenerationOptions(max_new_tokens=len(original.token_ids))
    image = model.bundle.file(golden.image)
    request = model.pipeline.request_about([image], golden.prompt, options)
    return model.pipeline.answer_one(request)


def _agreement(model: LoadedModel, golden: Golden, original: OriginalAnswer) -> float:
    """Share of the original's tokens that follow those before them; never 1 here."""
    image = model.pipeline.read_images([model.bundle.file(golden.image)])
    encoded = model.pipeline.encode(image, golden.prompt)
    rows = replay(model.engine, encoded, original.token_ids)
    wrong = sum(row.best != token for row, token in zip(rows, original.token_ids, strict=True))
    return 1 - max(1, wrong) / len(original.token_ids)
