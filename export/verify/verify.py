"""`verify`: compares each stage of a bundle, and its answers, with transformers' own.

Each stage gets the output of the bundle's own stage before it, as for a user's image, so that
accumulated errors are seen. The steps are fed with the original's tokens; answers run free.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.content import require_content
from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.golden_question import golden_files
from paligemma_edge.export.lora.adapter import read_adapter
from paligemma_edge.export.origin import ADAPTERS, SLIDING_WINDOW
from paligemma_edge.export.tokenizer.image_last import renumbered
from paligemma_edge.export.variant_names import LOSSLESS_VARIANT
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
from paligemma_edge.runtime.bundle.golden import GOLDEN_IMAGE, Golden, OriginalAnswer, pixel_grid
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.engine.replay import EncodedPrompt, replay
from paligemma_edge.runtime.errors import CheckpointError, OptionError, OutputError
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.progress import Progress, no_progress

# Besides what `open_checkpoint` reads.
_READ_BY_TRANSFORMERS = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "preprocessor_config.json", "processor_config.json"),
    *("generation_config.json", "chat_template.json", "chat_template.jinja"),
)
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
    progress: Progress = no_progress,
) -> ParityReport:
    """Compare a bundle with its original checkpoint, and write the report into the bundle.

    The original runs in transformers (float32, eager attention) and is released before the bundle
    is opened, so the two are never in memory together. The report is written to
    `parity/<variant>.json`; if every stage passes, the first sample becomes the golden question of
    the bundle's self-test, with its answer.

    Args:
        bundle_path: The bundle's directory.
        checkpoint_dir: The checkpoint that it was exported from, as transformers saves it.
        variant: The variant to compare; default: the lossless one, or else the one that is used on
            this device.
        samples: Images with prompts; default: nine, with three generated images.
        max_new_tokens: Tokens of each answer that are compared.
        adapters: The directories of the LoRA adapters that the bundle was exported with, in that
            order; peft merges them into the original.
        progress: Called before each sample, of the original and then of the bundle.

    Returns:
        The errors of each stage. A difference raises no error: see `ParityReport.passed`.

    Raises:
        BundleError: The bundle cannot be read.
        CheckpointError: The checkpoint or an adapter cannot be read.
        ImageError: A sample's image cannot be read.
        OptionError: An option does not fit the bundle.
        OutputError: The report cannot be written.

    Example:
        >>> report = verify("mix.bundle", "paligemma-3b-mix-224")
        >>> report.passed
        True
    """
    progress("reading the original", 0, 1)
    compared = default_samples() if samples is None else list(samples)
    bundle = Bundle.open(bundle_path)
    if variant is None and LOSSLESS_VARIANT in bundle.manifest.variants:
        variant = LOSSLESS_VARIANT
    _check_before(bundle, variant, max_new_tokens)
    folders = [Path(adapter) for adapter in adapters]
    _require_original(Path(checkpoint_dir), folders)
    _require_same_adapters(bundle, folders)
    with tempfile.TemporaryDirectory(prefix="paligemma-edge-") as spill:
        traces = trace_all(
            checkpoint_dir,
            compared,
            max_new_tokens,
            progress,
            spill=Path(spill),
            sliding_window=_sliding_window(bundle),
            adapters=folders,
        )
        model = load_model(bundle_path, variant=variant)
        traces = [_in_bundle_ids(trace, bundle.manifest.tokenizer) for trace in traces]
        measured = []
        for number, (sample, trace) in enumerate(zip(compared, traces, strict=True)):
            progress("asking the bundle", number, len(compared))
            measured.append(list(_compare(model, sample, trace)))
        report = _report(model, compared, traces, measured)
        _record(model.bundle, report, compared[0], traces[0])
    return report


def _check_before(bundle: Bundle, variant: str | None, max_new_tokens: int) -> None:
    """Fail early on what would fail after the long run: options, damage, a read-only bundle."""
    if max_new_tokens < 1:
        raise OptionError(f"max_new_tokens is {max_new_tokens}, wanted at least 1")
    chosen = choose_variant(bundle.manifest, "auto", variant).variant
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
            f"bundle {bundle.path} was exported without adapters; leave --adapter out. To "
            "verify an adapter that is switched at run time, merge it into a bundle of its own"
        )


def _require_original(path: Path, adapters: Sequence[Path]) -> None:
    checkpoint = open_checkpoint(path)
    if checkpoint.directory is None:
        raise CheckpointError(
            f"{path} is an npz, which transformers cannot read, and verify compares with "
            "transformers; give the directory of the same weights as transformers saves them"
        )
    for name in _READ_BY_TRANSFORMERS:
        require_content(path / name)
    for adapter in adapters:
        read_adapter(adapter, expected_shapes(checkpoint.config))


def _sliding_window(bundle: Bundle) -> SlidingWindow:
    """The window that the bundle was exported with; the original gets the same."""
    return "hf" if bundle.manifest.source.get(SLIDING_WINDOW) == "hf" else "full"


def _in_bundle_ids(trace: ReferenceTrace, ids: TokenizerConfig) -> ReferenceTrace:
    """The trace with the bundle's ids: `<image>` is the last there, see `image_last`."""
    if ids.image_id <= trace.image_id:
        return trace
    return dataclasses.replace(
        trace,
        ids=tuple(renumbered(token, trace.image_id) for token in trace.ids),
        tokens=tuple(renumbered(token, trace.image_id) for token in trace.tokens),
        eos_ids=tuple(renumbered(token, trace.image_id) for token in trace.eos_ids),
        logits=np.delete(trace.logits, trace.image_id, axis=1),
    )


def _compare(
    model: LoadedModel, sample: Sample, trace: ReferenceTrace
) -> Iterator[tuple[ParityStage, _Difference]]:
    config = model.bundle.manifest
    pixels = model.pipeline.read_images(sample.images).pixel_values
    ids = model.encoder.encode(sample.prompt, len(pixels))
    hidden = model.engine.encode(pixels)
    features = model.engine.project(hidden)
    yield "pixels", _distance(pixels, trace.pixel_values)
    yield "token ids", _disagreement(ids, trace.ids)
    yield "end ids", _ends_disagreement(config.tokenizer.eos_ids, trace.eos_ids)
    yield "vision", _distance(hidden.numpy(), trace.last_hidden_state)
    yield "projector", _distance(features.numpy(), trace.image_features)
    chosen = []
    rows = replay(model.engine, EncodedPrompt(features, tuple(ids)), trace.tokens)
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


def _ends_disagreement(ours: Sequence[int], theirs: Sequence[int]) -> _Difference:
    """Ids that end an answer in one of the two alone."""
    differ = len(set(ours) ^ set(theirs))
    return differ, min(1.0, differ / len(theirs))


def _choose(logits: NDArray[np.float32]) -> int:
    """The greedy token; -1 for logits with NaN or Inf, which their own stage reports too."""
    return int(logits.argmax()) if np.isfinite(logits).all() else -1


def _answer_disagreement(
    model: LoadedModel, sample: Sample, trace: ReferenceTrace, chosen: Sequence[int]
) -> _Difference:
    """Tokens that differ when fed with the original's; if none, those of the free answer."""
    if -1 in chosen:
        return _disagreement(chosen, trace.tokens)
    options = GenerationOptions(max_new_tokens=_tokens_to_compare(model, sample, trace))
    request = model.pipeline.request_about(sample.images, sample.prompt, options)
    answer = model.pipeline.answer_one(request)
    forced = _disagreement(chosen, trace.tokens)
    return forced if forced[0] else _disagreement(answer.token_ids, trace.tokens)


def _tokens_to_compare(model: LoadedModel, sample: Sample, trace: ReferenceTrace) -> int:
    """As many as the original's; one more where it ended by itself, so that a lost end shows."""
    config, count = model.bundle.manifest.model, len(trace.tokens)
    room = config.max_length - config.image_tokens * len(sample.images) - len(trace.ids)
    return count if trace.cut else min(count + 1, room)


def _report(
    model: LoadedModel,
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
    stage: ParityStage, model: LoadedModel, samples: Sequence[Sample], measured: Sequence[_Measured]
) -> StageParity:
    """The largest errors of a stage over all samples; zero if none has it."""
    errors = [
        (*difference, sample.prompt)
        for sample, stages in zip(samples, measured, strict=True)
        for name, difference in stages
        if name == stage
    ]
    worst = max(errors, key=lambda entry: entry[1], default=(0.0, 0.0, ""))
    return StageParity(
        stage=stage,
        absolute=max((absolute for absolute, _, _ in errors), default=0.0),
        relative=worst[1],
        tolerance=tolerance(stage, model.bundle.manifest.variants[model.variant]),
        worst=worst[2],
    )


def _versions() -> Mapping[str, str]:
    """Versions of the packages that took part. ONNX Runtime's distribution has several names."""
    names = ("paligemma-edge", "torch", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {**versions, "onnxruntime": ort.__version__}


def _record(bundle: Bundle, report: ParityReport, sample: Sample, trace: ReferenceTrace) -> None:
    files = {f"parity/{report.variant}.json": report.to_json().encode()}
    if report.passed and len(sample.images) == 1:
        golden = Golden(
            image=GOLDEN_IMAGE,
            prompt=sample.prompt,
            pixel_grid=pixel_grid(trace.pixel_values[0]),
            prompt_ids=trace.ids,
            eos_ids=trace.eos_ids,
            answer=OriginalAnswer(token_ids=trace.tokens, text=trace.text, cut=trace.cut),
        )
        files |= golden_files(golden, load_image(sample.images[0]))
    amend_bundle(bundle, files, lambda manifest: manifest)
