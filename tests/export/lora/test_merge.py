"""Adapters merged at export, compared with PEFT's `merge_and_unload` of the same adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma_edge import PaliGemma
from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING, source_key
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from paligemma_edge.export.checkpoint.tensors import Array, CheckpointTensor
from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.adapter import read_adapter
from paligemma_edge.export.lora.merge import merge_adapters
from paligemma_edge.runtime.errors import CheckpointError
from tests.helpers import adapters as peft
from tests.helpers.adapters import WEIGHTS, edit
from tests.helpers.big_vision_file import as_big_vision, save

MakeCheckpoint = Callable[..., Path]
ATTENTION = ["q_proj", "k_proj", "v_proj"]
LINEAR = [*ATTENTION, "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2"]
DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float16: ir.DataType.FLOAT16,
}
EPS = {DTYPES[dtype]: torch.finfo(dtype).eps for dtype in DTYPES}

CONFIGS: dict[str, dict[str, Any]] = {
    "attention of both towers": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {
            r"^model.language_model.layers.0.self_attn.q_proj": 2,
            r"layers.\d+.mlp.(gate|up)_proj": 7,
            # The first that fits counts; peft saves them sorted.
            "language_model.layers.1.self_attn.v_proj": 5,
            "v_proj": 3,
        },
        "alpha_pattern": {"_proj": 99, "layers.0.*.k_proj": 4, "q_proj": 9, "vision.*.fc1": 2.5},
    },
    "patches and positions": {"target_modules": ["patch_embedding", "position_embedding"]},
    "projector and biases": {
        "target_modules": ["o_proj", "out_proj"],
        "modules_to_save": ["multi_modal_projector"],
        "bias": "all",
    },
    "own biases": {"target_modules": ATTENTION, "bias": "lora_only"},
    "one layer": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "tied tables": {
        "target_modules": ["down_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "dora": {"target_modules": "all-linear", "use_dora": True},
}


def merged(base: Path, adapters: Sequence[Path]) -> dict[str, CheckpointTensor]:
    checkpoint = open_checkpoint(base)
    shapes = expected_shapes(checkpoint.config)
    return merge_adapters(checkpoint.tensors, [read_adapter(path, shapes) for path in adapters])


def assert_merged(
    ours: Mapping[str, CheckpointTensor], theirs: Mapping[str, Any], sums: int = 0
) -> None:
    """PEFT's own weights, up to one rounding step of their dtype and `sums` of float32."""
    for name, tensor in ours.items():
        wanted = theirs[source_key(name, "C")]
        assert tensor.dtype == DTYPES[wanted.dtype], name
        step = torch.finfo(wanted.dtype).eps + sums * torch.finfo(torch.float32).eps
        assert_close(tensor.numpy(), wanted.float().numpy(), step, name)


def assert_same(
    ours: Mapping[str, CheckpointTensor], others: Mapping[str, CheckpointTensor]
) -> None:
    """The same merge computed twice: equal up to one rounding step."""
    for name, tensor in others.items():
        assert ours[name].dtype == tensor.dtype, name
        assert_close(ours[name].numpy(), tensor.numpy(), eps_of(tensor), name)


def assert_close(actual: Array, wanted: Array, step: float, name: str = "") -> None:
    # A product's last bit depends on the kernel that a CPU has, and on where an array is in memory.
    actual, wanted = actual.astype(np.float32), wanted.astype(np.float32)
    assert (np.abs(actual - wanted) <= step * (np.abs(wanted) + 0.1)).all(), name


def eps_of(tensor: CheckpointTensor) -> float:
    return EPS[tensor.dtype]


@pytest.fixture(scope="module")
def bases(make_checkpoint: MakeCheckpoint) -> dict[str, Path]:
    return {dtype: make_checkpoint(dtype=dtype) for dtype in ("float32", "bfloat16", "float16")}


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On every linear layer, with a projector that was trained as a whole."""
    folder = tmp_path_factory.mktemp("lora") / "parts-lora"
    whole = ["multi_modal_projector"]
    return peft.train(bases["bfloat16"], folder, target_modules=LINEAR, modules_to_save=whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_merged_weights_are_those_of_peft(
    options: dict[str, Any], dtype: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[dtype]
    folder = peft.train(base, tmp_path / "lora", **options)
    if "bias" in options:  # which nn.Linear ignores
        edit(folder, fan_in_fan_out=True)
    ours, theirs = merged(base, [folder]), peft.merge(base, [folder])
    # Of a row's length torch's sum in float32 has lost up to two steps: peft's own weights are that
    # far from those computed in float64.
    assert_merged(ours, theirs, sums=2 if "use_dora" in options else 0)
    before = open_checkpoint(base).tensors
    assert any(ours[name].tobytes() != before[name].tobytes() for name in before)


def test_a_gemma_2(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    base = make_checkpoint(dtype="bfloat16", text={"model_type": "gemma2"})
    folder = peft.train(base, tmp_path / "lora", target_modules="all-linear")
    assert_merged(merged(base, [folder]), peft.merge(base, [folder]))


def test_adapters_are_merged_in_order(bases: dict[str, Path], tmp_path: Path) -> None:
    """A DoRA sets the norm of each row, so what is added before it has another effect."""
    base = bases["bfloat16"]
    plain = peft.train(base, tmp_path / "plain", target_modules=ATTENTION)
    dora = peft.train(base, tmp_path / "dora", target_modules=ATTENTION, use_dora=True, seed=1)
    results = []
    for order in ([plain, dora], [dora, plain]):
        results.append(merged(base, order))
        assert_merged(results[-1], peft.merge(base, order))
    name = "decoder.layers.0.q_proj.weight"
    first, second = (result[name].numpy().astype(np.float32) for result in results)
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_adapter_of_another_dtype(dtype: str, adapter: Path, bases: dict[str, Path]) -> None:
    """Trained on bfloat16; tensors trained as a whole are cast to the base's dtype, too."""
    assert_merged(merged(bases[dtype], [adapter]), peft.merge(bases[dtype], [adapter]))


def test_values_in_the_dtype_of_the_file(
    adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    halves = peft.rename(adapter, tmp_path / "halves", lambda key: key)
    tensors = {key: tensor.half() for key, tensor in load_file(halves / WEIGHTS).items()}
    save_file(tensors, halves / WEIGHTS)
    base = bases["bfloat16"]
    assert_merged(merged(base, [halves]), peft.merge(base, [halves]))


# Keys of the same adapter as other releases of transformers, and other programs, save them.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "A": lambda key: respell(key, "A"),
    "B": lambda key: respell(key, "B"),
    "D": lambda key: respell(key, "D"),
    "no prefix": lambda key: key.removeprefix("base_model.model."),
    "a name": lambda key: re.sub(r"(lora_[AB])(?=\.)", r"\1.default", key),
    "a wrapped module": lambda key: key.replace("projector.", "projector.modules_to_save.default."),
}
MODULES = {  # of layout C
    "A": {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "B": {"model.vision_tower.": "model.vision_tower.vision_model."},
    "D": {
        "model.vision_tower.": "vision_tower.",
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
}


def respell(key: str, layout: str) -> str:
    path = key.removeprefix("base_model.model.")
    for ours, theirs in MODULES[layout].items():
        if path.startswith(ours):
            return f"base_model.model.{theirs}{path.removeprefix(ours)}"
    return key


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_layout_of_the_keys(
    spelling: str, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    wanted = merged(bases["bfloat16"], [adapter])
    other = peft.rename(adapter, tmp_path / "other", SPELLINGS[spelling])
    assert set(load_file(other / WEIGHTS)) != set(load_file(adapter / WEIGHTS))
    actual = merged(bases["bfloat16"], [other])
    assert actual.keys() == wanted.keys()
    assert_same(actual, wanted)


def test_a_part_equals_that_part_of_the_whole(adapter: Path, bases: dict[str, Path]) -> None:
    tensor = merged(bases["bfloat16"], [adapter])["decoder.layers.1.gate_proj.weight"]
    whole = tensor.numpy()
    assert_close(np.concatenate(list(tensor.chunks())), whole.reshape(-1), eps_of(tensor))
    assert_close(tensor.read(5, 90), whole.reshape(-1)[5:90], eps_of(tensor))


def changed(
    adapter: Path, target: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Path:
    """A copy of the adapter with other values in each tensor whose key has `part` in it."""
    folder = peft.rename(adapter, target, lambda key: key)
    tensors = load_file(folder / WEIGHTS)
    save_file({k: change(t) if part in k else t for k, t in tensors.items()}, folder / WEIGHTS)
    return folder


def with_one(value: float, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


def test_sums_that_the_dtype_cannot_hold(
    adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    loud = changed(adapter, tmp_path / "loud", "lora_B", lambda tensor: tensor * 1e6)
    with pytest.raises(CheckpointError, match=r"of .*loud gives numbers that float16 cannot hold"):
        export(bases["float16"], tmp_path / "x.bundle", adapters=[loud])
    assert not (tmp_path / "x.bundle").exists()


def test_a_whole_tensor_that_the_dtype_cannot_hold(
    adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    for part in ("projector.linear.weight", "projector.linear.bias"):
        loud = changed(adapter, tmp_path / part, part, lambda tensor: tensor * 0 + 1e6)
        with pytest.raises(CheckpointError, match=rf"holds .* in .*{part}, which float16 cannot"):
            export(bases["float16"], tmp_path / "x.bundle", adapters=[loud])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "part",
    [
        *("layers.1.mlp.up_proj.lora_A", "layers.0.self_attn.q_proj.lora_B", "fc1.lora_B"),
        *("projector.linear.weight", "projector.linear.bias"),
    ],
)
def test_an_adapter_with_nan_or_inf(
    part: str, value: float, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    odd = changed(adapter, tmp_path / "odd", part, lambda tensor: with_one(value, tensor))
    for base in bases.values():
        with (
            np.errstate(over="raise", invalid="raise", divide="raise"),
            pytest.raises(CheckpointError, match=rf"odd holds NaN or Inf in .*{part}.*; .*damaged"),
        ):
            export(base, tmp_path / "x.bundle", adapters=[odd])
    assert not (tmp_path / "x.bundle").exists()


def test_a_dora_with_nan_or_inf(bases: dict[str, Path], tmp_path: Path) -> None:
    base, part = bases["bfloat16"], "lora_magnitude_vector"
    dora = peft.train(base, tmp_path / "dora", target_modules=ATTENTION, use_dora=True)
    odd = changed(dora, tmp_path / "odd", part, lambda tensor: with_one(np.inf, tensor))
    with pytest.raises(CheckpointError, match=rf"odd holds NaN or Inf in .*{part}"):
        export(base, tmp_path / "x.bundle", adapters=[odd])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layer", ["layers.1.mlp.up_proj", "layers.0.mlp.fc1"])
def test_a_base_with_nan_or_inf(
    layer: str, value: float, adapter: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    base = make_checkpoint(dtype="bfloat16")
    tensors = load_file(base / "model.safetensors")
    (key,) = (key for key in tensors if key.endswith(f"{layer}.weight"))
    tensors[key] = with_one(value, tensors[key])
    save_file(tensors, base / "model.safetensors")
    name = f"{'decoder' if 'mlp.up' in layer else 'vision'}.{layer.replace('mlp.', '')}"
    with pytest.raises(CheckpointError, match=rf"^the weights of {name} hold NaN or Inf, wanted"):
        export(base, tmp_path / "x.bundle", adapters=[adapter])
    assert not (tmp_path / "x.bundle").exists()


def test_a_bundle_answers_as_the_merged_model(
    adapter: Path, bases: dict[str, Path], shapes_images: Path, tmp_path: Path
) -> None:
    """Merged at export, or by PEFT before it: the same answers."""
    base = bases["bfloat16"]
    model = peft.load(base)
    model.load_state_dict(peft.merge(base, [adapter]))
    model.save_pretrained(tmp_path / "merged")
    for path in base.glob("*token*"):
        (tmp_path / "merged" / path.name).write_bytes(path.read_bytes())
    export(tmp_path / "merged", tmp_path / "a.bundle")
    manifest = export(base, tmp_path / "b.bundle", adapters=[adapter])
    size = (adapter / WEIGHTS).stat().st_size
    assert manifest.source["adapters"].startswith(f"parts-lora ({size} bytes, sha256 ")
    models = [PaliGemma(tmp_path / name, device="cpu") for name in ("a.bundle", "b.bundle")]
    export(base, tmp_path / "c.bundle")
    models.append(PaliGemma(tmp_path / "c.bundle", device="cpu"))
    image = shapes_images / "00.png"
    first, second, bare = (
        model.generate(image, "caption en", max_new_tokens=12).token_ids for model in models
    )
    assert first == second != bare


def test_adapters_of_an_npz(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", as_big_vision(bases["bfloat16"]))
    wanted, actual = merged(bases["bfloat16"], [adapter]), merged(path, [adapter])
    assert actual.keys() == wanted.keys()
    assert_same(actual, {name: wanted[name] for name in wanted if name != EMBEDDING})
