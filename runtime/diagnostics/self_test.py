"""Does a bundle work on this device? Digests of all files, then one question with a known answer.

Knows the golden question, which `verify` took from the original. Knows nothing of the original.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Unpack

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import Golden, required_agreement
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.results.generation import Generation


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What a device answered to the golden question, beside what the original answered."""

    variant: str
    files: int  # whose digests are right
    golden: Golden
    token_ids: tuple[int, ...]
    text: str
    agreement: float  # share of tokens that are the original's, each after the original's own
    required: float

    @property
    def passed(self) -> bool:
        """Whether enough of the tokens agree: all of them in a float32 variant."""
        return self.agreement >= self.required

    def summary(self) -> str:
        """The result in a few lines, for people."""
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"{verdict}: {self.files} files have their digests; {self.variant} agrees with the "
            f"original on {self.agreement:.0%} of {len(self.golden.token_ids)} tokens, "
            f"wanted {self.required:.0%}",
        ]
        if self.token_ids != self.golden.token_ids:
            lines += [f"  original: {self.golden.text!r}", f"  here:     {self.text!r}"]
        return "\n".join(lines)


def self_test(
    bundle_path: str | os.PathLike[str],
    device: DeviceName = "auto",
    variant: str | None = None,
    **load: Unpack[LoadOptions],
) -> SelfTest:
    """Check the digest of every file of a bundle and ask the golden question.

    BundleError where a file is damaged or no golden question is there; DeviceError where the
    device is not.
    """
    bundle = Bundle.open(bundle_path)
    model = load_model(bundle_path, device, variant, **load)
    bundle.verify(set(bundle.manifest.files) - set(model.verified_files))
    golden = Golden.read(bundle)
    answer = _answer(model, golden)
    same = answer.token_ids == golden.token_ids
    return SelfTest(
        variant=model.variant,
        files=len(bundle.manifest.files),
        golden=golden,
        token_ids=answer.token_ids,
        text=answer.text,
        agreement=1.0 if same else _agreement(model, golden),
        required=required_agreement(bundle.manifest.variants[model.variant]),
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
