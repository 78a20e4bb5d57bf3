"""Models on a GPU, or with the same code on a CPU, and what it means that two answers agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.loading import loaded_model
from paligemma_edge.runtime.loading.options import device_for
from paligemma_edge.runtime.results.generation import Generation
from tests.helpers.gpu_on_host import Copies, CountedMemory, GpuOnHost

SHAPES, NARROW, NARROW_2 = "shapes.bundle", "narrow.bundle", "narrow2.bundle"
BUNDLES = (SHAPES, NARROW, NARROW_2)
VARIANTS = ("cuda-fp16", "cuda-bf16", "cuda-int8", "cuda-int4")
VOCAB, IMAGE_ID = 257_216, 257_152  # of the released models, and of choice.onnx and its kin
# Nats: two tokens are equally likely within the precision of float16.
TIE = 0.05

Requests: TypeAlias = list[tuple[Path, str]]  # image, prompt
Given: TypeAlias = Any  # options of PaliGemma


def sample_requests() -> Requests:
    folder = Path(__file__).parents[2] / "samples" / "images"
    entries = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return [(folder / e["image"], q["prompt"]) for e in entries for q in e["questions"]]


@dataclass(frozen=True)
class Where:
    """Opens the bundles of a folder; with `on_cpu` those for a GPU run there too."""

    folder: Path
    on_cpu: bool
    opened: dict[tuple[str, str], PaliGemma] = field(default_factory=dict)

    def bundle(self, name: str) -> Bundle:
        """A bundle; the test is skipped where it was not made."""
        if not (self.folder / name).is_dir():
            pytest.skip(f"{self.folder} has no {name}")
        return Bundle.open(self.folder / name)

    def model(self, name: str, variant: str) -> PaliGemma:
        """A variant with the usual options, the same model each time."""
        if (name, variant) not in self.opened:
            self.opened[name, variant] = self.open(name, variant)
        return self.opened[name, variant]

    def open(self, name: str, variant: str, **given: Given) -> PaliGemma:
        """A variant with options of its own."""
        path = self.bundle(name).path
        if not self.on_cpu or variant.startswith("cpu"):
            return PaliGemma(path, variant=variant, **given)
        if variant == "cuda-bf16":
            pytest.skip("ONNX Runtime has no CPU kernels for bfloat16")
        device = Device(name="cpu", threads=2, cuda_graph=given.get("cuda_graph", False))
        return _opened_by(device, path, variant, given)

    def limited(self, name: str, variant: str, bytes_: int) -> PaliGemma:
        """With so many bytes beyond weights and caches, whatever is known to be needed."""
        path = self.bundle(name).path
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loaded_model,
                "device_for",
                lambda *a, **k: dataclasses.replace(device_for(*a, **k), memory_limit=bytes_),
            )
            return PaliGemma(path, variant=variant)

    def counted(self, name: str, variant: str) -> tuple[PaliGemma, Copies]:
        """A model, and what it copies between host and GPU."""
        kind = "cpu" if self.on_cpu else "cuda"
        memory = CountedMemory(kind)  # type: ignore[arg-type]
        device = GpuOnHost(name=memory.device, threads=2, counted=memory)
        return _opened_by(device, self.bundle(name).path, variant, {}), memory.copies


def _opened_by(device: Device, path: Path, variant: str, given: Given) -> PaliGemma:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model, "device_for", lambda *_, **__: device)
        return PaliGemma(path, variant=variant, **given)


def agree(one: Generation, other: Generation, tie: float = TIE) -> bool:
    """Whether two answers are the same up to a token where the models could not decide."""
    tokens = zip(one.token_ids, other.token_ids, strict=False)
    differing = (place for place, (a, b) in enumerate(tokens) if a != b)
    if (place := next(differing, None)) is None:
        return len(one.token_ids) == len(other.token_ids)
    return abs(one.log_probs[place] - other.log_probs[place]) < tie


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def relative_error(actual: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())
