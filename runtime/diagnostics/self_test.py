"""Does a bundle work on this device? Digests of all files, then one question with a known answer.

Knows the golden question, which `verify` took from the original. Knows nothing of the original.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Unpack

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import GOLDEN, Golden, required_agreement
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.size_text import size_text


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """What a device answered to the golden question, beside what the original answered."""

    golden: Golden
    token_ids: tuple[int, ...]
    text: str
    agreement: float  # share of tokens that are the original's, each after the original's own
    required: float  # 1 in a float32 variant

    @property
    def agrees(self) -> bool:
        """Whether enough of the tokens are the original's."""
        return self.agreement >= self.required


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
    bundle = Bundle.open(bundle_path)
    progress("comparing digests and opening the variant", 0, 1)
    model = load_model(bundle_path, device, variant, **load)
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
    )


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
