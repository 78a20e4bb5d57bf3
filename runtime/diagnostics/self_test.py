"""Does a bundle work on this device? Digests of all files, then one question with a known answer.

Knows the golden question, which `verify` took from the original. Knows nothing of the original.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from paligemma_edge.runtime.bundle.golden import GOLDEN, Golden, pixel_grid, required_agreement
from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.size_text import size_text

# How much pixel values may differ, on average and of their range: 1/8 of a grey level.
_PIXELS = 1 / 255 / 8


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """What a device answered to the golden question, beside what the original answered."""

    golden: Golden
    token_ids: tuple[int, ...]
    text: str
    agreement: float  # share of tokens that are the original's, each after the original's own
    required: float  # 1 in a float32 variant
    misread: tuple[str, ...] = ()  # of image and prompt, what is not what the original reads

    @property
    def agrees(self) -> bool:
        """Whether the question is the original's, and enough of the tokens are."""
        return self.agreement >= self.required and not self.misread


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """A bundle whose digests are right, and its answer to the golden question, if it has one."""

    variant: str
    files: int  # whose digests are right
    file_bytes: int  # of all of them
    answer: GoldenAnswer | None

    @property
    def passed(self) -> bool:
        """Whether nothing that can be compared differs."""
        return self.answer is None or self.answer.agrees

    def summary(self) -> list[str]:
        """The result in a few lines, for people."""
        digests = f"the digests of {self.files} files ({size_text(self.file_bytes)}) match"
        answer = self.answer
        if answer is None:
            return [
                f"passed: {digests}, and {self.variant} can be opened here; there is no golden "
                "answer to compare (`paligemma-edge verify` makes one, where the checkpoint is)"
            ]
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: {digests}; {self.variant} agrees with the "
            f"original on {answer.agreement:.0%} of {len(answer.golden.token_ids)} tokens, "
            f"wanted {answer.required:.0%}",
        ]
        lines += [f"  {what}" for what in answer.misread]
        if answer.token_ids != answer.golden.token_ids:
            lines += [f"  original: {answer.golden.text!r}", f"  here:     {answer.text!r}"]
        return lines


def self_test(
    bundle_path: str | os.PathLike[str],
    device: DeviceName = "auto",
    variant: str | None = None,
    *,
    progress: Progress = no_progress,
    **load: Unpack[LoadOptions],
) -> SelfTest:
    """Check the digest of every file of a bundle, and ask the golden question where there is one.

    BundleError where a file is damaged or the golden question unreadable; DeviceError where the
    device is not there.
    """
    bundle = open_bundle(bundle_path)
    progress("comparing digests and opening the variant", 0, 1)
    model = load_model(bundle.path, device, variant, **load)
    files = bundle.manifest.files
    bundle.verify(set(files) - set(model.verified_files))
    answer = None
    if GOLDEN in files:
        progress("asking the golden question", 0, 1)
        answer = _golden_answer(model, Golden.read(bundle))
    return SelfTest(
        variant=model.variant,
        files=len(files),
        file_bytes=sum(record.bytes for record in files.values()),
        answer=answer,
    )


def _golden_answer(model: LoadedModel, golden: Golden) -> GoldenAnswer:
    answer = _answer(model, golden)
    same = answer.token_ids == golden.token_ids
    return GoldenAnswer(
        golden=golden,
        token_ids=answer.token_ids,
        text=answer.text,
        agreement=1.0 if same else _agreement(model, golden),
        required=required_agreement(model.bundle.manifest.variants[model.variant]),
        misread=tuple(_misread(model, golden)),
    )


def _misread(model: LoadedModel, golden: Golden) -> Iterator[str]:
    """What the manifest makes of the question that the original does not."""
    (pixels,) = model.pipeline.read_images([model.bundle.file(golden.image)]).pixel_values
    here, there = np.array(pixel_grid(pixels)), np.array(golden.pixel_grid)
    # Written so that NaN fails too. One grey level in a few values is another release of Pillow.
    if here.shape != there.shape or not np.abs(here - there).mean() <= _PIXELS * np.ptp(there):
        yield "the image's pixel values are not the original's: see `image` in the manifest"
    ids = tuple(model.encoder.encode(golden.prompt, 1))
    if ids != golden.prompt_ids:
        yield f"the prompt's token ids are {ids}, the original's {golden.prompt_ids}"
    ends = [token in model.bundle.manifest.tokenizer.eos_ids for token in golden.token_ids]
    if any(ends[:-1]) or ends[-1] == golden.cut:
        yield "the answer does not end where the original's does: see `eos_ids` in the manifest"


def _answer(model: LoadedModel, golden: Golden) -> Generation:
    """What the model answers by itself, in as many tokens as the original at most."""
    options = GenerationOptions(max_new_tokens=len(golden.token_ids))
    image = model.bundle.file(golden.image)
    request = model.pipeline.request_about([image], golden.prompt, options)
    return model.pipeline.answer_one(request)


def _agreement(model: LoadedModel, golden: Golden) -> float:
    """Share of the golden tokens that follow the golden ones before them; never 1 here."""
    image = model.pipeline.read_images([model.bundle.file(golden.image)])
    encoded = model.pipeline.encode(image, golden.prompt)
    rows = replay(model.engine, encoded, golden.token_ids)
    wrong = sum(row.best != token for row, token in zip(rows, golden.token_ids, strict=True))
    return 1 - max(1, wrong) / len(golden.token_ids)
