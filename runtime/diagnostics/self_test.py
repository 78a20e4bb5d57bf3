"""Does a bundle work on this device? Digests of all files, then one question with a known answer.

Knows the golden question, which `verify` took from the original. Knows nothing of the original.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.contract import Variant
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.images.load import load_image, pixel_values
from paligemma_edge.runtime.loading.options import Opening
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.model import PaliGemma

if TYPE_CHECKING:
    import onnxruntime as ort

GOLDEN = "golden.json"
GOLDEN_IMAGE = "golden.png"

# The share of tokens that must be the original's where a variant is not exact. This finds a
# device that computes wrongly; how good a small variant is, its own report says.
_AGREEMENT: Mapping[str, float] = {"float16": 0.75, "bfloat16": 0.75, "int8": 0.75, "int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A question and the original's greedy answer to it."""

    image: str  # a file of the bundle
    prompt: str
    token_ids: tuple[int, ...]
    text: str

    def to_json(self) -> bytes:
        """The contents of `golden.json`."""
        return (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, bundle: Bundle) -> Golden:
        """The golden question of a bundle; BundleError where it has none that can be read."""
        if GOLDEN not in bundle.manifest.files:
            raise BundleError(
                f"bundle {bundle.path} has no {GOLDEN}, so no answer is known to test with; "
                "run `paligemma-edge verify` where the checkpoint is"
            )
        golden = _parse(bundle.file(GOLDEN).read_bytes())
        if golden is None or not golden.token_ids:
            raise BundleError(
                f"bundle {bundle.path}: {GOLDEN} holds no question and answer; "
                "run `paligemma-edge verify` again"
            )
        return golden


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
    **opening: Unpack[Opening],
) -> SelfTest:
    """Check the digest of every file of a bundle and ask the golden question.

    BundleError where a file is damaged or no golden question is there; DeviceError where the
    device is not.
    """
    bundle = Bundle.open(bundle_path)
    model = PaliGemma(bundle_path, device, variant, **opening)
    bundle.verify(set(bundle.manifest.files) - set(model.verified_files))
    golden = Golden.read(bundle)
    found = model.generate(
        bundle.file(golden.image), golden.prompt, max_new_tokens=len(golden.token_ids)
    )
    same = found.token_ids == golden.token_ids
    return SelfTest(
        variant=model.variant,
        files=len(bundle.manifest.files),
        golden=golden,
        token_ids=found.token_ids,
        text=found.text,
        agreement=1.0 if same else _agreement(model, golden),
        required=required_agreement(bundle.manifest.variants[model.variant]),
    )


def _parse(data: bytes) -> Golden | None:
    try:
        found = json.loads(data)
        tokens = tuple(int(token) for token in found["token_ids"])
        texts = {name: str(found[name]) for name in ("image", "prompt", "text")}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return Golden(**texts, token_ids=tokens)


def required_agreement(variant: Variant) -> float:
    """The share of tokens that must be the original's: 1 where float weights meet float32."""
    kinds = (variant.weight_dtype, variant.compute_dtype)
    if variant.compute_dtype == "float32" and variant.weight_dtype not in ("int8", "int4"):
        return 1.0
    return min(_AGREEMENT.get(kind, 1.0) for kind in kinds)


def replay(
    engine: Engine, features: ort.OrtValue, ids: Sequence[int], tokens: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Prefill a prompt, then feed a known answer: the logits [vocab] before each of its tokens.

    `features` is [pictures, N, hidden]. What the variant itself would have said is not fed, so
    one difference does not grow into others. Each row is valid until the next one is asked for.
    """
    pictures, image_tokens, _ = features.shape()
    capacity = pictures * image_tokens + len(ids) + len(tokens)
    cache = engine.cache(1, capacity)
    yield engine.prefill(cache, 0, features, ids).whole
    stepper = engine.stepper(cache, 1)
    for token in tokens[:-1]:
        yield stepper.step([token])[0].whole


def _agreement(model: PaliGemma, golden: Golden) -> float:
    """Share of the golden tokens that come after the golden ones before them; never 1 here."""
    facts = model.bundle.manifest
    picture = load_image(model.bundle.file(golden.image))
    hidden = model.engine.encode(pixel_values(picture, facts.image)[None])
    ids = model.encoder.encode(golden.prompt, 1)
    rows = replay(model.engine, model.engine.project(hidden), ids, golden.token_ids)
    spoken = facts.tokenizer.image_id
    chosen = [Greedy().choose(row[:spoken], place) for place, row in enumerate(rows)]
    wrong = sum(a != b for a, b in zip(chosen, golden.token_ids, strict=True))
    return 1 - max(1, wrong) / len(golden.token_ids)
