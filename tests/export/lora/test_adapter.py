"""Reading an adapter: each layer's change, and every kind that is not supported."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.tensor_shapes import Shape, expected_shapes
from paligemma_edge.export.lora.adapter import PeftAdapter, read_adapter
from paligemma_edge.export.lora.config import LoraConfig, read_lora_config
from paligemma_edge.runtime.errors import CheckpointError
from tests.helpers import adapters as peft
from tests.helpers.adapters import CONFIG, WEIGHTS, edit

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
ROOT = "base_model.model.model."
QUERY = f"{ROOT}language_model.layers.0.self_attn.q_proj."
TABLE, HEAD = f"{ROOT}language_model.embed_tokens.weight", "base_model.model.lm_head.weight"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(dtype="bfloat16")


@pytest.fixture(scope="module")
def shapes(base: Path) -> dict[str, Shape]:
    return expected_shapes(open_checkpoint(base).config)


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return peft.train(base, folder, target_modules=["q_proj", "fc1"])


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "lora"))


def change(adapter: Path, edit: Callable[[Tensors], object]) -> Path:
    tensors = load_file(adapter / WEIGHTS)
    edit(tensors)
    save_file(tensors, adapter / WEIGHTS)
    return adapter


def read_error(adapter: Path, shapes: dict[str, Shape]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(adapter, shapes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layers_and_scales_of_an_adapter(adapter: Path, shapes: dict[str, Shape]) -> None:
    actual = read_adapter(edit(adapter, alpha_pattern={"fc1": 3}), shapes)
    assert isinstance(actual, PeftAdapter)
    assert set(actual.layers) == {
        *(f"decoder.layers.{i}.q_proj" for i in range(2)),
        *(f"vision.layers.{i}.{name}" for i in range(2) for name in ("q_proj", "fc1")),
    }
    assert (actual.tensors, actual.file) == ({}, adapter / WEIGHTS)
    query, fc1 = actual.layers["decoder.layers.0.q_proj"], actual.layers["vision.layers.1.fc1"]
    assert (query.rank, query.scale, fc1.scale, query.magnitude) == (4, 6 / 4, 3 / 4, None)
    stored = load_file(adapter / WEIGHTS)
    np.testing.assert_array_equal(query.a.numpy(), stored[f"{QUERY}lora_A.weight"].numpy())
    np.testing.assert_array_equal(query.b.numpy(), stored[f"{QUERY}lora_B.weight"].numpy())


def test_scales_of_rslora() -> None:
    config = LoraConfig(
        rank=8,
        alpha=16,
        rank_pattern={"fc1": 4},
        alpha_pattern={"fc2": 2},
        rslora=True,
        dora=False,
    )
    assert config.scale_of("a.q_proj") == 16 / math.sqrt(8)
    assert config.scale_of("a.fc1") == 16 / 2
    assert config.scale_of("fc2") == 2 / math.sqrt(8)


MODULE = "model.language_model.layers.12.self_attn.q_proj"
PIECES = st.sampled_from(
    [
        "model",
        "layers",
        "q_proj",
        "proj",
        "self_attn",
        r"\d+",
        "12",
        "1",
        ".",
        r"\.",
        ".*",
        "^",
        "|",
    ]
)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=6).map("".join), max_size=4, unique=True))
def test_patterns_match_as_in_peft(patterns: list[str]) -> None:
    values = {pattern: number for number, pattern in enumerate(patterns, 1)}
    config = LoraConfig(
        rank=99, alpha=1, rank_pattern=values, alpha_pattern={}, rslora=False, dora=False
    )
    key = get_pattern_key(values.keys(), MODULE)  # type: ignore[arg-type]
    assert config.rank_of(MODULE) == values.get(key, 99)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3', wanted 'LORA'"),
        ({"peft_type": None}, "peft_type None, wanted 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"lora_bias": True}, "lora_bias True, wanted it switched off: a bias of LoRA's own"),
        ({"alora_invocation_tokens": [1]}, "cannot be merged"),
        ({"trainable_token_indices": [3]}, "tokens trained by themselves"),
        ({"layer_replication": [[0, 2]]}, "other layers than its checkpoint"),
        ({"target_parameters": ["x"]}, "PaliGemma has no such parameters"),
        ({"use_qalora": True}, "use_qalora True, wanted it switched off"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"new_idea": "z" * 300}, "new_idea 'zzz"),
        ({"r": 0}, "r 0, wanted a rank from 1"),
        ({"r": 4.0}, "r 4.0, wanted a rank from 1"),
        ({"r": True}, "r True, wanted a rank"),
        ({"lora_alpha": "8"}, "lora_alpha '8', wanted a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan, wanted a number"),
        ({"rank_pattern": [1]}, "rank_pattern [1], wanted an object"),
        ({"rank_pattern": {"q_proj": -1}}, "q_proj -1, wanted a rank"),
        ({"rank_pattern": {"(q": 1}}, "wanted regular expressions"),
        ({"alpha_pattern": {"q_proj": None}}, "q_proj None, wanted a number"),
        ({"use_rslora": 3}, "use_rslora 3, wanted true or false"),
    ],
)
def test_unsupported_configs(
    fields: dict[str, Any], message: str, adapter: Path, shapes: dict[str, Shape]
) -> None:
    error = read_error(edit(adapter, **fields), shapes)
    assert message in error
    assert len(error) < 500


def test_fields_that_are_switched_off(adapter: Path) -> None:
    edit(adapter, new_idea=None, other_idea=[], use_qalora=False, lora_bias=False)
    assert read_lora_config(adapter).rank == 4


def test_missing_files(adapter: Path, shapes: dict[str, Shape]) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    message = read_error(adapter, shapes)
    assert "holds adapter_model.bin, a pickle, which can run code" in message
    assert "safe_serialization=True" in message
    (adapter / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in read_error(adapter, shapes)
    (adapter / CONFIG).write_text("{")
    assert "cannot be read as JSON" in read_error(adapter, shapes)
    (adapter / CONFIG).unlink()
    assert "give the directory of a LoRA adapter as PEFT saves it" in read_error(adapter, shapes)
    assert "has no adapter_config.json" in read_error(adapter / "absent", shapes)
    assert "has no adapter_config.json" in read_error(adapter / ("x" * 300), shapes)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file(keep: int, adapter: Path, shapes: dict[str, Shape]) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:keep])
    assert "not a sound safetensors file" in read_error(adapter, shapes)


def test_keys_of_unknown_layers(adapter: Path, shapes: dict[str, Shape]) -> None:
    other = f"{ROOT}language_model.layers.9.self_attn.q_proj.lora_A.weight"
    change(adapter, lambda t: t.update({other: torch.ones(4, 48), "a\nb": torch.ones(1)}))
    message = read_error(adapter, shapes)
    assert f"changes layers that this PaliGemma does not have: a\\nb, {other}; give an" in message
    gain = f"{ROOT}language_model.norm.lora_A.weight"
    change(adapter, lambda t: t.update({gain: torch.ones(4)}))
    assert gain in read_error(adapter, shapes)
    delta = f"{ROOT}language_model.embed_tokens.token_adapter.trainable_tokens_delta"
    change(adapter, lambda t: t.update({delta: torch.ones(2, 48)}))
    assert "trainable_tokens_delta" in read_error(adapter, shapes)


def test_an_adapter_that_changes_nothing(adapter: Path, shapes: dict[str, Shape]) -> None:
    assert "changes nothing" in read_error(change(adapter, lambda t: t.clear()), shapes)


@pytest.mark.parametrize(
    ("suffix", "shape", "message"),
    [
        ("lora_A.weight", (3, 48), "has lora_A [3, 48], lora_B [32, 4] of model.language_model"),
        ("lora_A.weight", (4, 40), "wanted lora_A [4, 48], lora_B [32, 4] by its adapter_config"),
        ("lora_B.weight", (64, 4), "has lora_A [4, 48], lora_B [64, 4]"),
        ("lora_B.weight", (128,), "lora_B [128]"),
        ("lora_magnitude_vector", (32,), "lora_magnitude_vector [32] of"),
        ("lora_embedding_A", (4, 32), "lora_embedding_A [4, 32] of"),
        ("lora_B.bias", (32,), "layers that this PaliGemma does not have"),
        ("lora_A.second.weight", (4, 48), "two keys for one part of a layer"),
    ],
)
def test_tensors_of_wrong_shapes(
    suffix: str, shape: Shape, message: str, adapter: Path, shapes: dict[str, Shape]
) -> None:
    change(adapter, lambda t: t.update({f"{QUERY}{suffix}": torch.ones(shape)}))
    assert message in read_error(adapter, shapes)


def test_a_rank_that_differs_from_the_config(adapter: Path, shapes: dict[str, Shape]) -> None:
    assert "wanted lora_A [8, 48], lora_B [32, 8] by its" in read_error(edit(adapter, r=8), shapes)


def test_an_a_without_its_b(adapter: Path, shapes: dict[str, Shape]) -> None:
    change(adapter, lambda t: t.pop(f"{QUERY}lora_B.weight"))
    assert "has lora_A [4, 48] of model.language_model.layers.0" in read_error(adapter, shapes)


def test_dora_without_a_magnitude(adapter: Path, shapes: dict[str, Shape]) -> None:
    message = read_error(edit(adapter, use_dora=True), shapes)
    assert "wanted lora_A [4, 48], lora_B [32, 4], lora_magnitude_vector [32]" in message


@pytest.mark.parametrize("name", ["patch_embedding", "position_embedding"])
def test_dora_of_other_layers(
    name: str, base: Path, shapes: dict[str, Shape], tmp_path: Path
) -> None:
    folder = peft.train(base, tmp_path / "lora", target_modules=[name], use_dora=True)
    assert f"has DoRA on model.vision_tower.embeddings.{name}" in read_error(folder, shapes)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_lora_on_one_end_of_the_table(
    name: str, base: Path, shapes: dict[str, Shape], tmp_path: Path
) -> None:
    folder = peft.train(base, tmp_path / "lora", target_modules=["q_proj", name])
    message = read_error(folder, shapes)
    assert name in message
    assert "merging it would change both ends" in message


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_table_trained_at_one_end(
    name: str, base: Path, shapes: dict[str, Shape], tmp_path: Path
) -> None:
    folder = peft.train(base, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=[name])
    assert f"{name}.weight alone, and PaliGemma has one table" in read_error(folder, shapes)


def test_tables_that_differ(adapter: Path, shapes: dict[str, Shape]) -> None:
    table = torch.ones(2176, 48)
    change(adapter, lambda t: t.update({TABLE: table, HEAD: table + 1}))
    assert "has two values of decoder.embed_tokens.weight" in read_error(adapter, shapes)
    change(adapter, lambda t: t.update({HEAD: table.clone()}))
    assert set(read_adapter(adapter, shapes).tensors) == {"decoder.embed_tokens.weight"}


def test_whole_tensors_of_another_base(adapter: Path, shapes: dict[str, Shape]) -> None:
    bias = f"{ROOT}multi_modal_projector.linear.bias"
    change(adapter, lambda t: t.update({bias: torch.ones(64)}))
    assert "as projector.bias [64] and not [48]: projector.bias" in read_error(adapter, shapes)


def test_integer_tensors(adapter: Path, shapes: dict[str, Shape]) -> None:
    change(adapter, lambda t: t.update({f"{QUERY}lora_A.weight": torch.ones(4, 48).char()}))
    assert "as I8, wanted F32, BF16, F16 or F64; it is quantized" in read_error(adapter, shapes)


@given(st.dictionaries(st.text(max_size=60), st.integers(0, 3), max_size=3), st.data())
def test_any_keys_give_an_adapter_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    original: Path,
    shapes: dict[str, Shape],
    keys: dict[str, int],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    known = data.draw(st.sampled_from(sorted(load_file(original / WEIGHTS))))
    value = data.draw(st.one_of(st.none(), st.integers(), st.text(max_size=5), st.floats()))
    field = data.draw(st.sampled_from(sorted(json.loads((original / CONFIG).read_text()))))
    tensors = {key: torch.ones((2,) * axes) for key, axes in keys.items() if key != "__metadata__"}
    save_file(
        {**load_file(original / WEIGHTS), **tensors, f"{known}x": torch.ones(1)}, folder / WEIGHTS
    )
    shutil.copy(original / CONFIG, folder)
    edit(folder, **{field: value})
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, shapes)
    assert "\n" not in str(caught.value)
