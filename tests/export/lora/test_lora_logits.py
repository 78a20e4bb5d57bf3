"""A bundle with an adapter compared with transformers and peft, without merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma_edge.export.lora.add_to_bundle import add_adapter
from tests.helpers import adapters as peft
from tests.helpers.lora_graphs import distance, inputs, logits, original
from tests.helpers.lora_models import DECODER, EVERYTHING, Model, check_whole

CLOSE = 1e-5  # of the largest logit
CONFIGS: dict[str, dict[str, Any]] = {
    "decoder alone": {"target_modules": DECODER},
    "attention of both towers": {"target_modules": ["q_proj", "v_proj"]},
    "everything": EVERYTHING,
    "the projector": {"target_modules": r".*multi_modal_projector\.linear"},
    "one layer": {"target_modules": ["k_proj", "fc2", "o_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bundle_with_an_adapter_has_the_logits_of_peft(config: str, small: Model) -> None:
    adapter = peft.train(small.base, small.bundle.parent / "lora", **CONFIGS[config])
    add_adapter(small.bundle, adapter, "mine")
    wanted = original(small.base, small.seen, adapter)
    given = inputs(small.bundle, "cpu-fp32", "mine")
    assert distance(logits(small.bundle, "cpu-fp32", small.seen, given), wanted) < CLOSE
    assert distance(original(small.base, small.seen), wanted) > 0.01
    check_whole(small.bundle)


def test_transformed_weights_with_an_adapter_have_the_logits_of_peft(model: Model) -> None:
    """Gains folded, stream and values rotated, inputs smoothed, and a graph for prompts."""
    wanted = original(model.base, model.seen, model.adapter)
    arrays = inputs(model.bundle, "cpu-transformed", "one")
    plain = inputs(model.bundle, "cpu-fp32", "one")
    assert any(name.endswith("shift") for name in arrays)
    changed = [name for name in plain if distance(arrays[name], plain[name]) > 1e-3]
    assert len(changed) > 0.6 * len(plain)
    assert (
        distance(logits(model.bundle, "cpu-transformed", model.seen, arrays), wanted) < 10 * CLOSE
    )
    assert distance(logits(model.bundle, "cpu-transformed", model.seen, {}), wanted) > 0.1


@pytest.mark.parametrize("variant", ["cpu-fp32", "cpu-transformed", "cpu-transformed2"])
def test_a_paligemma2_with_an_adapter_has_the_logits_of_peft(variant: str, second: Model) -> None:
    wanted = original(second.base, second.seen, second.adapter)
    given = inputs(second.bundle, variant, "one")
    assert distance(logits(second.bundle, variant, second.seen, given), wanted) < 10 * CLOSE
    assert distance(logits(second.bundle, variant, second.seen, {}), wanted) > 0.1


@pytest.mark.parametrize(("variant", "close"), [("cpu-int8", 0.05), ("cpu-fast", 0.4)])
def test_quantized_weights_with_an_adapter(variant: str, close: float, model: Model) -> None:
    """Random weights quantize badly; the adapter's effect is far larger."""
    wanted = original(model.base, model.seen, model.adapter)
    given = inputs(model.bundle, variant, "one")
    assert distance(logits(model.bundle, variant, model.seen, given), wanted) < close
    assert distance(logits(model.bundle, variant, model.seen, {}), wanted) > 2 * close


@pytest.mark.parametrize(
    "variant", ["cpu-fp32", "cpu-transformed", "cpu-int4", "cpu-int8", "cpu-fast"]
)
def test_without_an_adapter_the_base_answers_to_the_last_bit(variant: str, model: Model) -> None:
    plain = logits(model.bundle, variant, model.seen)
    np.testing.assert_array_equal(logits(model.bundle, variant, model.seen, {}), plain)


def test_two_adapters_are_switched(small: Model, tmp_path: Path) -> None:
    other = peft.train(small.base, tmp_path / "other", seed=5, target_modules=DECODER)
    for name, adapter in (("one", small.adapter), ("two", other)):
        add_adapter(small.bundle, adapter, name)
    manifest = check_whole(small.bundle).manifest
    assert list(manifest.adapters) == ["one", "two"]
    for name, adapter in (("one", small.adapter), ("two", other)):
        given = inputs(small.bundle, "cpu-fp32", name)
        actual = logits(small.bundle, "cpu-fp32", small.seen, given)
        assert distance(actual, original(small.base, small.seen, adapter)) < CLOSE
