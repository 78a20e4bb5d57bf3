"""Is a bundle what its checkpoint is? Each stage beside transformers', and the answers.

Every stage of the bundle is fed with the bundle's own stage before it, as a user's image
would be, so an error that grows on its way is seen. The steps are fed with the original's
tokens; the answers run free.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.lora.adapter import read_adapter
from paligemma_edge.export.origin import ADAPTERS, SLIDING_WINDOW
from paligemma_edge.export.verify.parity import (
    STAGES,
    ParityReport,
    ParityStage,
    StageParity,
    tolerance,
)
from paligemma_edge.export.verify.reference import ReferenceTrace, trace_all
from paligemma_edge.export.verify.samples import DEFAULT_MAX_NEW_TOKENS, Sample, default_samples
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import GOLDEN, GOLDEN_IMAGE, Golden
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.engine.replay import encode_prompt, replay
from paligemma_edge.runtime.errors import CheckpointError, OptionError, OutputError
from paligemma_edge.runtime.images.batch import read_images
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.model import PaliGemma
from paligemma_edge.runtime.timing import Stopwatch

_Difference: TypeAlias = tuple[float, float]  # absolute and relative, see StageParity
_Measured: TypeAlias = list[tuple[ParityStage, _Difference]]  # of one sample; steps one by one


def verify(
    bundle_path: str | os.PathLike[str],
    checkpoint_dir: str | os.PathLike[str],
    *,
    variant: str | None = None,
    samples: Sequence[Sample] | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    adapters: Sequence[str | os.PathLike[str]] = (),
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare a bundle with its checkpoint and write `parity/<variant>.json` into the bundle.

    `adapters` are those that the bundle was exported with: peft merges them into the original.
    Where every stage is within its tolerance, the first sample becomes the golden question of
    the bundle's self-test. The original is dropped before the bundle is opened, so the two are
    never in memory together. BundleError, CheckpointError, OptionError or ImageError say what
    cannot be read; a difference is in the report and no error.
    """
    tell = progress or (lambda _: None)
    asked = default_samples() if samples is None else list(samples)
    bundle = Bundle.open(bundle_path)
    _require_before(bundle, variant, max_new_tokens)
    folders = [Path(adapter) for adapter in adapters]
    _require_original(Path(checkpoint_dir), folders)
    _require_same_adapters(bundle, folders)
    with tempfile.TemporaryDirectory(prefix="paligemma-edge-") as spill:
        told = lambda n: tell(f"original: {n} of {len(asked)}")  # noqa: E731
        traces = trace_all(
            checkpoint_dir,
            asked,
            max_new_tokens,
            told,
            Path(spill),
            sliding_window=_sliding_window(bundle),
            adapters=folders,
        )
        model = PaliGemma(bundle_path, variant=variant)
        measured = []
        for number, (sample, trace) in enumerate(zip(asked, traces, strict=True)):
            tell(f"bundle: {number} of {len(asked)}")
            measured.append(list(_compare(model, sample, trace)))
        report = _report(model, asked, traces, measured)
        _record(model.bundle, report, asked[0], traces[0])
    return report


def _require_before(bundle: Bundle, variant: str | None, max_new_tokens: int) -> None:
    """Tell what would fail after the long work: options, damage, a bundle that stays as it is."""
    if max_new_tokens < 1:
        raise OptionError(f"max_new_tokens is {max_new_tokens}, wanted at least 1")
    _, chosen = choose_variant(bundle.manifest, "auto", variant)
    if not os.access(bundle.path, os.W_OK | os.X_OK):
        raise OutputError(
            errno.EACCES,
            f"{bundle.path} cannot be written, wanted a place for the report; "
            "copy the bundle or change its permissions",
        )
    bundle.verify((*chosen.files, bundle.manifest.tokenizer.file))


def _require_same_adapters(bundle: Bundle, adapters: Sequence[Path]) -> None:
    merged = bundle.manifest.source.get(ADAPTERS)
    if merged is not None and not adapters:
        raise OptionError(
            f"bundle {bundle.path} was exported with adapters: {merged}; give them in that order, "
            "each by --adapter"
        )
    if merged is None and adapters:
        raise OptionError(
            f"bundle {bundle.path} was exported without adapters; leave --adapter out. What is "
            "switched at run time is verified by a bundle that it was merged into"
        )


def _require_original(path: Path, adapters: Sequence[Path]) -> None:
    checkpoint = open_checkpoint(path)
    if checkpoint.directory is None:
        raise CheckpointError(
            f"{path} is an npz, which transformers cannot read, and verify compares with "
            "transformers; give the directory of the same weights as transformers saves them"
        )
    for adapter in adapters:
        read_adapter(adapter, expected_shapes(checkpoint.config))


def _sliding_window(bundle: Bundle) -> SlidingWindow:
    """What an answer saw when the bundle was exported; so does the original's."""
    return "hf" if bundle.manifest.source.get(SLIDING_WINDOW) == "hf" else "full"


def _compare(
    model: PaliGemma, sample: Sample, trace: ReferenceTrace
) -> Iterator[tuple[ParityStage, _Difference]]:
    config = model.bundle.manifest
    pixels = read_images(sample.images, config.image, Stopwatch()).pixel_values
    ids = model.encoder.encode(sample.prompt, len(pixels))
    encoded = encode_prompt(model.engine, pixels, ids)
    yield "pixels", _distance(pixels, trace.pixel_values)
    yield "token ids", _disagreement(ids, trace.ids)
    yield "vision", _distance(encoded.last_hidden_state.numpy(), trace.last_hidden_state)
    yield "projector", _distance(encoded.image_features.numpy(), trace.image_features)
    chosen = []
    rows = replay(model.engine, encoded, trace.tokens)
    # No answer holds an id from the image's on, and two ways of saving fill those rows otherwise.
    known = slice(config.tokenizer.image_id)
    for place, (row, expected) in enumerate(zip(rows, trace.logits, strict=True)):
        stage: ParityStage = "step logits" if place else "first logits"
        yield stage, _distance(row.answer_logits, expected[known])
        chosen.append(_choose(row.answer_logits))
    yield "answer", _answer_disagreement(model, sample, trace, chosen)


def _distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> _Difference:
    if ours.shape != theirs.shape:
        return math.inf, math.inf
    absolute, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    if not math.isfinite(absolute) or not math.isfinite(largest):
        return math.inf, math.inf
    return absolute, absolute / largest if absolute else 0.0


def _disagreement(ours: Sequence[int], theirs: Sequence[int]) -> _Difference:
    differ = sum(a != b for a, b in itertools.zip_longest(ours, theirs))
    return differ, min(1.0, differ / len(theirs))


def _choose(logits: NDArray[np.float32]) -> int:
    """The greedy token; -1 where there is none, which the logits' own stage tells too."""
    return int(logits.argmax()) if np.isfinite(logits).all() else -1


def _answer_disagreement(
    model: PaliGemma, sample: Sample, trace: ReferenceTrace, chosen: Sequence[int]
) -> _Difference:
    """Tokens that differ after the original's own; where none does, those of the free answer."""
    if -1 in chosen:
        return _disagreement(chosen, trace.tokens)
    answer = model.generate(sample.images, sample.prompt, max_new_tokens=len(trace.tokens))
    forced = _disagreement(chosen, trace.tokens)
    return forced if forced[0] else _disagreement(answer.token_ids, trace.tokens)


def _report(
    model: PaliGemma,
    samples: Sequence[Sample],
    traces: Sequence[ReferenceTrace],
    measured: Sequence[_Measured],
) -> ParityReport:
    return ParityReport(
        variant=model.variant,
        samples=len(samples),
        steps=sum(len(trace.tokens) - 1 for trace in traces),
        versions=_versions(),
        stages=tuple(_stage(stage, model, samples, measured) for stage in STAGES),
    )


def _stage(
    stage: ParityStage, model: PaliGemma, samples: Sequence[Sample], measured: Sequence[_Measured]
) -> StageParity:
    """The largest errors of a stage; zero where no sample reached it."""
    found = [
        (*difference, sample.prompt)
        for sample, stages in zip(samples, measured, strict=True)
        for name, difference in stages
        if name == stage
    ]
    worst = max(found, key=lambda entry: entry[1], default=(0.0, 0.0, ""))
    return StageParity(
        stage=stage,
        absolute=max((absolute for absolute, _, _ in found), default=0.0),
        relative=worst[1],
        tolerance=tolerance(stage, model.bundle.manifest.variants[model.variant]),
        worst=worst[2],
    )


def _versions() -> Mapping[str, str]:
    """The packages that took part. ONNX Runtime's distribution has several names."""
    names = ("paligemma-edge", "torch", "transformers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "onnxruntime": ort.__version__}


def _record(bundle: Bundle, report: ParityReport, sample: Sample, trace: ReferenceTrace) -> None:
    files = {f"parity/{report.variant}.json": report.to_json().encode()}
    if report.passed and len(sample.images) == 1:
        golden = Golden(
            image=GOLDEN_IMAGE, prompt=sample.prompt, token_ids=trace.tokens, text=trace.text
        )
        image = io.BytesIO()
        load_image(sample.images[0]).save(image, "PNG")
        files |= {GOLDEN: golden.to_json(), GOLDEN_IMAGE: image.getvalue()}
    amend_bundle(bundle, files, lambda manifest: manifest)
