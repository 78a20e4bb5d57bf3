"""NaN or Inf in a checkpoint is refused by the weight's name, before anything is computed with it.

NumPy may raise for every operation that such a value makes invalid, and warnings are errors: so
nothing here depends on which of them the kernels of one CPU report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from paligemma_edge.export.exporter import export
from paligemma_edge.quantize import quantizer
from paligemma_edge.quantize.fidelity.questions import Question
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.quantize.graphs.graph_file import disk_bytes
from paligemma_edge.quantize.graphs.stored_weights import FiniteTensor, check_weights
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe, shipped
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import DeviceError, NonFiniteLogitsError, OptionError
from tests.conftest import MakeCheckpoint

TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
VISION = {"hidden_size": 64, "intermediate_size": 64}
# A tensor of each kind: how its key ends, and what the graphs call it.
TENSORS: Mapping[str, tuple[str, str]] = {
    "linear": ("language_model.model.layers.1.mlp.up_proj.weight", "decoder.layers.1.up_proj"),
    "attention": ("model.layers.0.self_attn.v_proj.weight", "decoder.layers.0.qkv_proj"),
    "gain": ("model.layers.1.input_layernorm.weight", "decoder.layers.1.input_layernorm.gain"),
    "last gain": ("language_model.model.norm.weight", "decoder.norm.gain"),
    "embedding": ("embed_tokens.weight", "decoder.embed_tokens"),
    "vision": ("encoder.layers.1.mlp.fc1.weight", "vision.layers.1.fc1"),
    "vision bias": ("encoder.layers.0.mlp.fc1.bias", "vision.layers.0.fc1.bias"),
    "vision values": ("encoder.layers.0.self_attn.v_proj.bias", "vision.layers.0.qkv_proj.bias"),
    "vision gain": ("encoder.layers.0.layer_norm1.weight", "vision.layers.0.layer_norm1"),
    "vision shift": ("encoder.layers.0.layer_norm2.bias", "vision.layers.0.layer_norm2.bias"),
    "positions": ("position_embedding.weight", "vision.position_embedding"),
    "patches": ("patch_embedding.weight", "vision.patch_embedding"),
    "projector": ("multi_modal_projector.linear.weight", "projector"),
    "projector bias": ("multi_modal_projector.linear.bias", "projector.bias"),
}
WRONG = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf}
CALIBRATED = ("linear", "embedding", "vision gain", "projector bias")
SIGNALLING = {2: 0x7F81, 4: 0x7F80_0001}  # a NaN that is invalid even to copy into another type


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        yield


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(vision=VISION, text=TEXT)


@pytest.fixture(params=list(TENSORS))
def damaged(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """The checkpoint with NaN or Inf in a tensor, and the name of that in the graphs."""
    kind: str = request.param
    wrong = list(WRONG.values())[list(TENSORS).index(kind) % len(WRONG)]
    with damage(checkpoint, TENSORS[kind][0], wrong):
        yield TENSORS[kind][1], checkpoint


class damage:  # noqa: N801 - used as a function
    """Puts a value into one tensor of a checkpoint, and takes it back."""

    def __init__(self, folder: Path, ending: str, value: float) -> None:
        self.file, self.ending, self.value = folder / "model.safetensors", ending, value

    def __enter__(self) -> None:
        self.before = self.file.read_bytes()
        tensors = load_file(self.file)
        (key,) = (key for key in tensors if key.endswith(self.ending))
        tensors[key].view(-1)[5] = self.value
        save_file(tensors, self.file, metadata={"format": "pt"})

    def __exit__(self, *_: object) -> None:
        self.file.write_bytes(self.before)


def refused(name: str) -> str:
    """What the error says of a weight."""
    return rf"^the weights of {name} hold NaN or Inf and cannot be rounded; download or save"


def test_no_recipe_rounds_them(damaged: tuple[str, Path], tmp_path: Path) -> None:
    name, checkpoint = damaged
    for recipe in shipped():
        with pytest.raises(OptionError, match=refused(name)):
            export(checkpoint, tmp_path / "x.bundle", variants=[load_recipe(recipe)])
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "kind"), list(zip(shipped(), itertools.cycle(CALIBRATED), strict=False))
)
def test_no_recipe_calibrates_with_them(
    recipe: str, kind: str, checkpoint: Path, shapes_images: Path, tmp_path: Path
) -> None:
    ending, name = TENSORS[kind]
    questions = [Question(image=shapes_images / "00.png", prompt="caption en", task="caption")]
    with damage(checkpoint, ending, np.nan), pytest.raises(OptionError, match=refused(name)):
        export(
            checkpoint,
            tmp_path / "x.bundle",
            variants=[load_recipe(recipe)],
            questions=questions,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", CALIBRATED)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_lossless_bundle_keeps_them_and_is_not_quantized(
    wrong: str, kind: str, checkpoint: Path, shapes_images: Path, tmp_path: Path
) -> None:
    """What answers the questions is the lossless variant, before any weight is read here."""
    ending, name = TENSORS[kind]
    with damage(checkpoint, ending, WRONG[wrong]):
        export(checkpoint, tmp_path / "x.bundle")
    question = Question(image=shapes_images / "00.png", prompt="caption en", task="caption")
    options = QuantizeOptions(questions=(question,), max_new_tokens=2, report=False)
    with pytest.raises(OptionError, match=refused(name)):
        quantize(tmp_path / "x.bundle", [load_recipe("cpu-int4")], options)
    assert list(Bundle.open(tmp_path / "x.bundle").manifest.variants) == ["cpu-fp32"]


def test_weights_are_read_for_nan_only_where_logits_are_not_finite(
    checkpoint: Path, shapes_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, reads, errors = tmp_path / "x.bundle", [], [DeviceError("x"), NonFiniteLogitsError("x")]
    export(checkpoint, bundle)
    question = Question(image=shapes_images / "00.png", prompt="caption en", task="caption")

    def fail(*_: object) -> NoReturn:
        raise errors[0]

    monkeypatch.setattr(quantizer, "with_answers", fail)
    monkeypatch.setattr(quantizer, "read_weights", lambda _: reads.append(type(errors[0])))
    while errors:
        with pytest.raises(DeviceError) as caught:
            quantize(bundle, [load_recipe("cpu-int4")], QuantizeOptions(questions=(question,)))
        assert caught.value is errors.pop(0)
    assert reads == [NonFiniteLogitsError]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["linear", "gain", "vision bias"])
def test_a_signalling_nan_is_kept_or_refused(
    kind: str, dtype: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Adding to it or casting it would raise."""
    import torch

    folder = make_checkpoint(vision=VISION, text=TEXT, dtype=dtype)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    (key,) = (key for key in tensors if key.endswith(TENSORS[kind][0]))
    size = tensors[key].element_size()
    bits = 0x7C01 if dtype == "float16" else SIGNALLING[size]
    tensors[key].view(torch.int16 if size == 2 else torch.int32).view(-1)[5] = bits
    save_file(tensors, file, metadata={"format": "pt"})
    export(folder, tmp_path / "lossless.bundle")
    for recipe in ("cpu-int4", "cuda-fp16"):
        with pytest.raises(OptionError, match=refused(TENSORS[kind][1])):
            export(folder, tmp_path / "x.bundle", variants=[load_recipe(recipe)])


def test_the_bits_decide() -> None:
    for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        values = np.arange(-3, 3, 0.5).reshape(3, 4).astype(dtype.numpy())
        largest = np.array([-1, 1], values.dtype) * np.finfo(np.float16).max
        assert all_finite(values) and all_finite(values.T) and all_finite(values[:, ::2])
        assert all_finite(largest.astype(values.dtype)) and all_finite(values[:0])
        for wrong in WRONG.values():
            values[1, 2] = wrong
            assert not all_finite(values) and not all_finite(values.T)
            assert all_finite(values[:, :2])


def test_a_weight_is_read_in_parts_and_only_those_are_checked() -> None:
    values = np.arange(12, dtype=np.float32)
    values[7] = np.nan
    tensor = FiniteTensor(ir.tensor(values.reshape(3, 4)), "some.weight")
    assert tensor.read(0, 7).tolist() == list(range(7))
    with pytest.raises(OptionError, match="weights of some hold NaN or Inf"):
        tensor.read(4, 8)
    for use in (tensor.numpy, tensor.tobytes, lambda: list(tensor.chunks())):
        with pytest.raises(OptionError, match="weights of some hold NaN or Inf"):
            use()


def test_a_tensor_that_two_graphs_share_stays_one() -> None:
    tensor = ir.tensor(np.ones((2, 3), np.float32), name="w")
    models = []
    for _ in range(2):
        value = ir.Value(name="w", type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph = ir.Graph([], [], nodes=[], initializers=[value], name="g")
        models.append(ir.Model(graph, ir_version=10))
    check_weights(models)
    check_weights(models)
    first, second = (model.graph.initializers["w"].const_value for model in models)
    assert first is second
    assert isinstance(first, FiniteTensor) and first.source is tensor
    assert disk_bytes(models) == tensor.nbytes
