"""big_vision's npz gives the weights of Hugging Face's checkpoint, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.export.checkpoint.big_vision_config import padded_rows, read_big_vision_config
from paligemma_edge.export.checkpoint.open import Checkpoint, open_checkpoint
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.tensor_shapes import Shape
from paligemma_edge.export.exporter import export
from paligemma_edge.runtime.errors import CheckpointError, TokenizerError
from tests.conftest import IMAGE_ID, ROWS
from tests.helpers.big_vision_file import Arrays, as_big_vision, save, split

MakeCheckpoint = Callable[..., Path]
SCALAR = {"query_pre_attn_scalar": 24}  # of heads that are narrower than 256: 48 / 2


@pytest.fixture(scope="module")
def original(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(dtype="bfloat16")


@pytest.fixture(scope="module")
def arrays(original: Path) -> Arrays:
    return as_big_vision(original)


def assert_same(actual: Checkpoint, wanted: Checkpoint) -> None:
    assert actual.config == dataclasses.replace(wanted.config, eos_token_ids=())
    assert actual.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        ours = actual.tensors[name]
        assert (ours.shape, ours.dtype) == (tensor.shape, tensor.dtype), name
        theirs = tensor.numpy()
        if name == EMBEDDING:  # Hugging Face's rows from <image> on are random, ours zeros
            assert not ours.numpy()[IMAGE_ID:].any()
            theirs[IMAGE_ID:] = 0
        assert ours.tobytes() == theirs.tobytes(), name
        assert b"".join(chunk.tobytes() for chunk in ours.chunks()) == theirs.tobytes(), name
        assert ours.read(3, 11).tobytes() == theirs.reshape(-1)[3:11].tobytes(), name


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_every_weight_is_that_of_hugging_face(
    kind: str, dtype: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    text = {"model_type": kind, "num_key_value_heads": 2, "num_attention_heads": 4}
    text |= {"query_pre_attn_scalar": 12} if kind == "gemma2" else {}
    folder = make_checkpoint(dtype=dtype, text=text)
    path = save(tmp_path / "x.npz", as_big_vision(folder, heads=4, kv_heads=2))
    assert_same(open_checkpoint(path), open_checkpoint(folder))


@pytest.mark.parametrize("words", ["V2", "<u2"])
@pytest.mark.parametrize("inside", ["", "params/"])
def test_bfloat16_dtypes_and_prefixes(
    arrays: Arrays, original: Path, words: str, inside: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.npz", arrays, words=words, folder=inside)
    assert_same(open_checkpoint(path), open_checkpoint(original))


def test_an_optimizers_state_is_skipped(arrays: Arrays, original: Path, tmp_path: Path) -> None:
    stored = {f"params/{name}": array for name, array in arrays.items()}
    path = save(tmp_path / "x.npz", {**stored, "opt/0/count": np.zeros(3, np.int64)})
    assert_same(open_checkpoint(path), open_checkpoint(original))


def test_a_compressed_archive(arrays: Arrays, original: Path, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert_same(open_checkpoint(tmp_path / "x.npz"), open_checkpoint(original))


def test_an_archive_in_parts(arrays: Arrays, original: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "pt.b16.npz", arrays)
    parts = split(path, 11)
    for named in (path, parts[0], parts[10]):
        checkpoint = open_checkpoint(named)
        assert checkpoint.files == tuple(parts)
        assert_same(checkpoint, open_checkpoint(original))
    last = parts[10].rename(tmp_path / "away")
    assert "or a part after pt.b16.npz.part9 is missing" in error_of(path)
    last.rename(parts[10])
    parts[4].unlink()
    assert "lacks part4; finish the download" in error_of(parts[0])
    parts[4].write_bytes(parts[3].read_bytes()[:-1])
    assert "is not a sound npz archive" in error_of(path)


def test_missing_paths(arrays: Arrays, tmp_path: Path) -> None:
    assert "x.npz does not exist, and neither does x.npz.part0" in error_of(tmp_path / "x.npz")
    assert "does not exist" in error_of(tmp_path / "absent" / "x.npz.part0")
    assert "does not exist" in error_of(tmp_path / ("x" * 300 + ".npz"))
    save(tmp_path / "pt.npz", arrays)
    assert "holds pt.npz and no config.json; give the path of the npz itself" in error_of(tmp_path)


def test_one_error_lists_every_wrong_array(arrays: Arrays, tmp_path: Path) -> None:
    broken = {name: array for name, array in arrays.items() if name != "llm/final_norm/scale"}
    broken["img/head/bias"] = np.zeros(5, np.float32)
    broken["value/head"] = np.zeros(3, np.float32)
    message = error_of(save(tmp_path / "x.npz", broken))
    assert "1 missing: llm/final_norm/scale" in message
    assert "1 unexpected: value/head" in message
    assert "1 misshapen: img/head/bias is [5] and not [48]" in message


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("img/pos_embedding", (1, 15, 32), "has 15 positions, wanted those of a square image"),
        ("img/pos_embedding", (16, 32), "another number of axes"),
        ("llm/layers/attn/kv_einsum/w", (2, 2, 3, 48, 16), "num_key_value_heads 3, wanted a divi"),
        ("llm/layers/attn/q_einsum/w", (0, 2, 48, 16), "num_hidden_layers 0, wanted a whole"),
        ("llm/layers/attn/q_einsum/w", (2, 0, 48, 16), "num_attention_heads 0, wanted a whole"),
        ("llm/layers/attn/q_einsum/w", (2, 2, 48, 0), "head_dim 0, wanted a whole number"),
        ("img/embedding/kernel", (0, 14, 3, 32), "wanted a whole number"),
        ("llm/embedder/input_embedding", (2152, 40), "misshapen"),
        ("llm/layers/mlp/linear", (3, 64, 48), "misshapen"),
    ],
)
def test_shapes_of_another_model(
    arrays: Arrays, name: str, shape: Shape, message: str, tmp_path: Path
) -> None:
    error = error_of(save(tmp_path / "x.npz", {**arrays, name: np.zeros(shape, np.float32)}))
    assert message in error
    assert "config.json" not in error


def test_an_npz_of_something_else(tmp_path: Path) -> None:
    message = error_of(save(tmp_path / "x.npz", {f"a\n{i}": np.zeros(2, "f4") for i in range(30)}))
    assert "is not a PaliGemma of big_vision: it lacks img/embedding/kernel" in message
    assert r"and holds a\n0, " in message
    assert "and 20 more" in message
    np.savez(tmp_path / "none.npz")
    assert "and holds nothing" in error_of(tmp_path / "none.npz")


# hidden, layers, heads, kv heads, head_dim, inner, and PaliGemma 2's query_pre_attn_scalar
RELEASED = [
    (2048, 18, 8, 1, 256, 16384, None),
    (2304, 26, 8, 4, 256, 9216, 256),
    (3584, 42, 16, 8, 256, 14336, 256),
    (4608, 46, 32, 16, 128, 36864, 144),
]


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "kv", "head_dim", "inner", "scalar"), RELEASED
)
def test_sizes_of_the_released_models(
    hidden: int, layers: int, heads: int, kv: int, head_dim: int, inner: int, scalar: int | None
) -> None:
    block = "img/Transformer/encoderblock/"
    shapes: dict[str, Shape] = {
        "img/embedding/kernel": (14, 14, 3, 1152),
        "img/pos_embedding": (1, 1024, 1152),
        f"{block}MultiHeadDotProductAttention_0/query/kernel": (27, 1152, 16, 72),
        f"{block}MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
        "llm/embedder/input_embedding": (257152, hidden),
        "llm/layers/attn/q_einsum/w": (layers, heads, hidden, head_dim),
        "llm/layers/attn/kv_einsum/w": (layers, 2, kv, hidden, head_dim),
        "llm/layers/mlp/gating_einsum": (layers, 2, hidden, inner),
    }
    if scalar is not None:
        shapes["llm/layers/post_ffw_norm/scale"] = (layers, hidden)
    config = read_big_vision_config(shapes)
    assert (config.vision.image_size, config.vision.num_heads) == (448, 16)
    text = config.text
    assert (text.hidden_size, text.num_layers, text.num_heads) == (hidden, layers, heads)
    assert (text.num_kv_heads, text.head_dim, text.intermediate_size) == (kv, head_dim, inner)
    assert (text.vocab_size, config.image_token_id) == (257216, 257152)
    assert (text.rope_theta, text.rms_norm_eps, text.max_position_embeddings) == (1e4, 1e-6, 8192)
    if scalar is None:
        assert text.gemma2 is None
    else:
        assert text.gemma2 is not None
        assert text.gemma2.query_pre_attn_scalar == scalar
        assert (text.gemma2.attn_softcap, text.gemma2.final_softcap) == (50, 30)
        assert text.gemma2.sliding_window == 4096


def test_rows_are_padded_as_hugging_face_does() -> None:
    assert [padded_rows(rows) for rows in (257152, IMAGE_ID, 63, 64)] == [257216, ROWS, 64, 128]


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_an_export_answers_as_that_of_hugging_face(
    kind: str, make_checkpoint: MakeCheckpoint, shapes_images: Path, tmp_path: Path
) -> None:
    text = {"model_type": kind, **(SCALAR if kind == "gemma2" else {})}
    folder = make_checkpoint(dtype="bfloat16", text=text)
    path = save(tmp_path / "x.npz", as_big_vision(folder))
    export(folder, tmp_path / "a.bundle")
    manifest = export(path, tmp_path / "b.bundle", tokenizer=folder / "tokenizer.model")
    assert manifest.source["checkpoint"] == "x.npz"
    assert manifest.source["weights"] == f"x.npz ({path.stat().st_size} bytes)"
    models = [PaliGemma(tmp_path / name, device="cpu") for name in ("a.bundle", "b.bundle")]
    first, second = (model.bundle.manifest for model in models)
    assert (first.model, first.tokenizer, first.image) == (
        second.model,
        second.tokenizer,
        second.image,
    )
    image = shapes_images / "00.png"
    answers = [model.generate(image, "caption en", max_new_tokens=12) for model in models]
    assert answers[0].token_ids == answers[1].token_ids


def test_the_tokenizer_is_beside_the_npz_or_given(
    arrays: Arrays, original: Path, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.npz", arrays)
    with pytest.raises(TokenizerError, match="or give it by --tokenizer"):
        export(path, tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists()
    wanted = (original / "tokenizer.model").read_bytes()
    shutil.copy(original / "tokenizer.model", tmp_path / "mine.model")
    for number, tokenizer in enumerate((original, tmp_path / "mine.model")):
        export(path, tmp_path / f"{number}.bundle", tokenizer=tokenizer)
        assert (tmp_path / f"{number}.bundle" / "tokenizer.model").read_bytes() == wanted
    export(path, tmp_path / "j.bundle", tokenizer=original / "tokenizer.json")
    shutil.copy(original / "tokenizer.model", tmp_path)
    export(path, tmp_path / "beside.bundle")
    with pytest.raises(TokenizerError, match="is not a sentencepiece model"):
        export(path, tmp_path / "y.bundle", tokenizer=original / "model.safetensors")
    with pytest.raises(TokenizerError, match="has neither"):
        export(path, tmp_path / "y.bundle", tokenizer=tmp_path / "absent.model")


def test_images_are_prepared_as_for_the_released_models(
    arrays: Arrays, original: Path, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.npz", arrays)
    # Files of transformers beside an npz belong to another checkpoint.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 0}))
    image = export(path, tmp_path / "x.bundle", tokenizer=original).image
    assert (image.size, image.resample) == (56, "bicubic")
    assert (image.mean, image.std) == ((0.5,) * 3, (0.5,) * 3)
    assert dataclasses.asdict(image)["rescale_factor"] == 1 / 255


def test_a_mask_decoder_is_no_checkpoint(shapes_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("vae-oid.npz", "pt_224.npz"):
        shutil.copy(shapes_checkpoint / "vae-oid.npz", tmp_path / name)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path / name)
        assert str(caught.value) == (
            f"{tmp_path / name} is PaliGemma's mask decoder, and no checkpoint; give the weights "
            "as CHECKPOINT and this file by --mask-decoder"
        )
