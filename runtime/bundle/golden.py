"""The bundle's golden question, which tests whether a device reads and computes correctly.

Knows what `export` recorded of how the question is read and an answer ends, and `verify` of the
original's answer. Knows nothing of the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import Variant

GOLDEN = "golden.json"
SCHEMA_VERSION = "2.0"  # of golden.json; the first had none
GOLDEN_IMAGE = "golden.png"

_GRID = 8  # rows and columns
_PIXELS = 1 / 255 / 8  # of their range
_MAJOR = SCHEMA_VERSION.partition(".")[0]  # as of the manifest

# The share of tokens that must be the original's where a variant is not exact. This detects a
# device that computes wrongly; the quality of a variant is in its fidelity report.
_AGREEMENT: Mapping[str, float] = {"float16": 0.75, "bfloat16": 0.75, "int8": 0.75, "int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class OriginalAnswer:
    """The original's greedy answer."""

    token_ids: tuple[int, ...]
    text: str
    cut: bool  # whether a limit of tokens cut the answer; else its last token ended it


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A question as the original reads it, and its answer where the original was asked."""

    image: str  # a file of the bundle
    prompt: str
    pixel_grid: tuple[float, ...]  # `pixel_grid` of the image as pixel values
    prompt_ids: tuple[int, ...]  # of the prompt with <bos> and the newline
    eos_ids: tuple[int, ...]  # each of them ends an answer of the original; ascending
    answer: OriginalAnswer | None

    def to_json(self) -> bytes:
        """The contents of `golden.json`."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, bundle: Bundle) -> Golden:
        """The golden question of a bundle; BundleError where it is missing or unreadable."""
        if GOLDEN not in bundle.manifest.files:
            raise BundleError(
                f"bundle {bundle.path} has no {GOLDEN}, so there is no question to test with; "
                "run `paligemma-edge verify` where the checkpoint is"
            )
        golden = _parse(_fields(bundle))
        if golden is None:
            raise BundleError(
                f"bundle {bundle.path}: {GOLDEN} holds no question; "
                "run `paligemma-edge verify` again"
            )
        return golden


def pixel_grid(pixels: NDArray[np.float32]) -> tuple[float, ...]:
    """Some of an image's pixel values [3, R, R], in rows and columns over all of it.

    They tell another mean, deviation, scale, size or filter, to which an answer may be blind.
    """
    places = np.linspace(0, pixels.shape[-1] - 1, _GRID).astype(int)
    return tuple(float(value) for value in pixels[:, places][:, :, places].ravel())


def same_pixels(here: tuple[float, ...], there: tuple[float, ...]) -> bool:
    """Whether two grids are of the same pixel values, to 1/8 of a grey level on average.

    One grey level in a few of them is another release of Pillow.
    """
    if len(here) != len(there):
        return False
    differ, most = np.subtract(here, there), _PIXELS * np.ptp(there)
    return bool(np.abs(differ).mean() <= most)  # not of NaN


def required_agreement(variant: Variant) -> float:
    """The share of tokens that must be the original's: 1 for float weights in float32."""
    kinds = (variant.weight_dtype, variant.compute_dtype)
    if variant.compute_dtype == "float32" and variant.weight_dtype not in ("int8", "int4"):
        return 1.0
    return min(_AGREEMENT.get(kind, 1.0) for kind in kinds)


def _fields(bundle: Bundle) -> Any:  # noqa: ANN401 - of JSON
    """What golden.json holds; BundleError where it is of another schema."""
    try:
        fields = json.loads(bundle.file(GOLDEN).read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, Mapping):
        return None
    version = fields.get("schema_version")
    if not isinstance(version, str) or version.partition(".")[0] != _MAJOR:
        raise BundleError(
            f"bundle {bundle.path}: {GOLDEN} has schema version {repr(version)[:40]}, this release "
            f"reads {SCHEMA_VERSION!r}; run `paligemma-edge verify` or export the bundle again"
        )
    return fields


def _parse(fields: Any) -> Golden | None:  # noqa: ANN401 - of JSON
    try:
        answer = None if fields["answer"] is None else _parse_answer(fields["answer"])
        golden = Golden(
            image=str(fields["image"]),
            prompt=str(fields["prompt"]),
            pixel_grid=tuple(float(value) for value in fields["pixel_grid"]),
            prompt_ids=tuple(int(token) for token in fields["prompt_ids"]),
            eos_ids=tuple(int(token) for token in fields["eos_ids"]),
            answer=answer,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    whole = answer is None or (answer.token_ids and isinstance(answer.cut, bool))
    return golden if whole and golden.eos_ids else None


def _parse_answer(fields: Mapping[str, Any]) -> OriginalAnswer:
    tokens = tuple(int(token) for token in fields["token_ids"])
    return OriginalAnswer(token_ids=tokens, text=str(fields["text"]), cut=fields["cut"])
