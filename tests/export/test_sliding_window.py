"""PaliGemma 2 with the sliding window of transformers, and without, as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.exporter import export
from paligemma_edge.export.verify.reference import Reference
from paligemma_edge.export.verify.samples import default_samples
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli.main import main
from paligemma_edge.runtime.errors import OptionError
from tests.export.test_parity import assert_close, replayed

MakeCheckpoint = Callable[..., Path]

WINDOW = 8  # an image alone has 16 tokens
TEXT: dict[str, Any] = {
    "model_type": "gemma2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
}
MODELS: dict[str, dict[str, Any]] = {
    "even layers": {},
    "odd layers": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "without softcaps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
}
SAMPLE = default_samples()[1]
ANSWER = [7, 300, 1200, 2150, 5, 900, 41, 8, 1999, 77, 77, 12]


@dataclass(frozen=True)
class Exported:
    """A checkpoint, and its bundles with and without the window."""

    checkpoint: Path
    bundles: dict[SlidingWindow, Path]

    def logits(self, sliding_window: SlidingWindow) -> NDArray[np.float32]:
        """[answer + 1, vocab], of a prefill and a step for each token."""
        return replayed(PaliGemma(self.bundles[sliding_window], device="cpu"), SAMPLE, ANSWER)

    def original(self, sliding_window: SlidingWindow) -> NDArray[np.float32]:
        """The same of transformers in one pass, with its prefix mask."""
        return Reference.open(self.checkpoint, sliding_window).forward_full(SAMPLE, ANSWER)


def exported(checkpoint: Path) -> Exported:
    kinds: tuple[SlidingWindow, ...] = ("full", "hf")
    bundles = {kind: checkpoint / f"{kind}.bundle" for kind in kinds}
    for kind, bundle in bundles.items():
        export(checkpoint, bundle, sliding_window=kind)
    return Exported(checkpoint, bundles)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Exported:
    return exported(make_checkpoint(text={**TEXT, **MODELS[request.param]}))


@pytest.mark.parametrize("kind", ["full", "hf"])
def test_a_long_answer_equals_the_original(kind: SlidingWindow, model: Exported) -> None:
    assert_close(model.logits(kind), model.original(kind))


@pytest.mark.parametrize("kind", ["full", "hf"])
def test_verify_compares_with_the_original_of_the_same_kind(
    kind: SlidingWindow, model: Exported
) -> None:
    samples = default_samples()[::4]
    report = verify(model.bundles[kind], model.checkpoint, samples=samples, max_new_tokens=12)
    errors = {stage.stage: stage.relative for stage in report.stages}
    assert report.passed, errors
    assert report.steps > WINDOW
    assert max(errors.values()) < 1e-4


def test_the_two_kinds_agree_on_the_prompt_and_differ_in_every_step(model: Exported) -> None:
    full, window = model.logits("full"), model.logits("hf")
    assert_close(window[0], full[0])
    largest = np.abs(full).max()
    assert (np.abs(window - full)[1:].max(axis=1) > 1e-2 * largest).all()


def test_a_window_that_holds_everything_changes_nothing(make_checkpoint: MakeCheckpoint) -> None:
    wide = exported(make_checkpoint(text={**TEXT, "sliding_window": 64}))
    assert_close(wide.logits("hf"), wide.logits("full"))


def test_the_manifest_names_the_kind_and_weights_are_stored_once(model: Exported) -> None:
    manifests = {kind: Bundle.open(path).manifest for kind, path in model.bundles.items()}
    assert {kind: m.source["sliding_window"] for kind, m in manifests.items()} == {
        "full": "full",
        "hf": "hf",
    }
    variants = {kind: m.variants["cpu-fp32"] for kind, m in manifests.items()}
    assert set(variants["hf"].graphs) - set(variants["full"].graphs) == {"prefill"}
    assert set(variants["hf"].files) - set(variants["full"].files) == {"cpu-fp32/prefill.onnx"}
    data = [m.files["cpu-fp32/decoder.onnx.data"].bytes for m in manifests.values()]
    assert data[0] == data[1]
    assert variants["hf"].memory_bytes > 1.5 * variants["full"].memory_bytes
    prefill = onnx.load(model.bundles["hf"] / "cpu-fp32/prefill.onnx", load_external_data=False)
    assert prefill.graph.output[0].name == "logits"


def test_a_manifest_of_a_paligemma_1_has_no_window(shapes_bundle: Path) -> None:
    assert "sliding_window" not in Bundle.open(shapes_bundle).manifest.source


def test_slots_equal_single_runs(model: Exported) -> None:
    window = PaliGemma(model.bundles["hf"], device="cpu")
    image = SAMPLE.images[0]
    requests = [(image, "caption en"), (image, "detect red circle ; blue square"), (image, "x")]
    together = window.generate_batch(requests, max_batch_size=2, max_new_tokens=11)
    alone = [window.generate(*request, max_new_tokens=11) for request in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize("text", [{}, {**TEXT, "sliding_window": None}], ids=["1", "2"])
def test_a_checkpoint_without_a_window(
    text: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = make_checkpoint(text=text)
    with pytest.raises(OptionError, match="gives no window, wanted a PaliGemma 2"):
        export(checkpoint, checkpoint / "x.bundle", sliding_window="hf")
    assert not (checkpoint / "x.bundle").exists()


def test_the_option_of_the_command(
    make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(text=TEXT)
    bundle = str(checkpoint / "x.bundle")
    assert main(["export", str(checkpoint), bundle, "--sliding-window", "hf"]) == 0
    assert Bundle.open(bundle).manifest.source["sliding_window"] == "hf"
    with pytest.raises(SystemExit) as caught:
        main(["export", str(checkpoint), bundle, "--sliding-window", "4096"])
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err
