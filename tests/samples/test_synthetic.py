"""Synthetic checkpoints: every form has the same weights, and transformers loads them whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import PaliGemmaForConditionalGeneration

from paligemma_edge.export.checkpoint.open import Checkpoint, open_checkpoint
from paligemma_edge.export.checkpoint.preprocessor_config import read_image_config
from paligemma_edge.export.checkpoint.tensor_names import source_key
from paligemma_edge.export.tokenizer.read import read_tokenizer
from samples.synthetic.models import official
from samples.synthetic.tokenizer import FULL_SIZE, build_tokenizer
from samples.synthetic.write import parse_args, run, write_checkpoint

SMALL = ["--model", "paligemma-3b-224", "--shrink"]


def write(folder: Path, *options: str) -> Checkpoint:
    """Write a small checkpoint and open it; later options override earlier ones."""
    run(parse_args([str(folder), *SMALL, *options]))
    return open_checkpoint(folder)


def weights(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("paligemma-3b-224", "float32"),
        ("paligemma-3b-224", "bfloat16"),
        ("paligemma-3b-448", "float16"),
        ("paligemma2-3b-224", "bfloat16"),
        ("paligemma2-10b-448", "bfloat16"),
        ("paligemma2-28b-224", "float32"),
    ],
)
def test_layout_dialect_and_shards_change_no_weight(tmp_path: Path, model: str, dtype: str) -> None:
    options = ["--model", model, "--dtype", dtype]
    first = write(tmp_path / "first", *options)
    assert (first.config.vision, first.config.text) == official(model, shrink=True)
    for number, (layout, dialect, shards) in enumerate(
        [("B", "transformers4", 2), ("C", "transformers5", 3), ("D", "hub", 5)]
    ):
        form = ["--layout", layout, "--dialect", dialect, "--shards", str(shards)]
        other = write(tmp_path / str(number), *options, *form)
        assert other.config == first.config
        assert len(other.files) > 1
        assert weights(other) == weights(first)
    assert weights(write(tmp_path / "seed", *options, "--seed", "1")) != weights(first)


@pytest.mark.parametrize(
    ("model", "layout", "dialect", "shards"),
    [
        ("paligemma-3b-224", "A", "hub", 1),
        ("paligemma-3b-224", "B", "transformers4", 2),
        ("paligemma-3b-224", "C", "transformers5", 1),
        ("paligemma-3b-224", "D", "hub", 1),
        ("paligemma2-3b-224", "A", "hub", 2),
        ("paligemma2-10b-224", "B", "transformers4", 1),
        ("paligemma2-28b-224", "C", "transformers5", 1),
    ],
)
def test_transformers_loads_it_whole(
    tmp_path: Path, model: str, layout: str, dialect: str, shards: int
) -> None:
    form = ["--layout", layout, "--dialect", dialect, "--shards", str(shards)]
    checkpoint = write(tmp_path, "--model", model, "--dtype", "float32", *form)
    loaded: Any = PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    loaded_model, report = loaded
    assert not any(report.values()), report
    state = loaded_model.state_dict()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), state[source_key(name, "C")].numpy())
    logits = loaded_model(
        input_ids=torch.tensor([[checkpoint.config.image_token_id] * 256 + [2, 300, 108]]),
        pixel_values=torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
        token_type_ids=torch.zeros(1, 259, dtype=torch.long),
    ).logits.detach()
    assert 0.1 < float(logits.std()) < 20


@pytest.mark.parametrize("only_json", [False, True])
def test_tokenizer_and_images_are_read(tmp_path: Path, only_json: bool) -> None:
    checkpoint = write(tmp_path, *["--only-tokenizer-json"] * only_json)
    assert (tmp_path / "tokenizer.model").exists() != only_json
    config = read_tokenizer(tmp_path, checkpoint.config).config
    assert config.newline_id == 108
    assert config.image_id == checkpoint.config.image_token_id == config.first_seg_id + 128
    assert read_image_config(tmp_path, checkpoint.config).size == 224


def test_the_full_tokenizer_has_the_real_ids_of_special_pieces() -> None:
    processor = SentencePieceProcessor(model_proto=build_tokenizer())
    assert processor.get_piece_size() == FULL_SIZE
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<unused98>"]
    wanted = [0, 1, 2, 3, 4, 5, 6, 105]
    assert [processor.piece_to_id(piece) for piece in marks] == wanted
    assert processor.encode("\n") == [108]
    assert processor.encode("\n\n<loc0000><loc1023><seg000><seg127>") == [
        109,
        256000,
        257023,
        257024,
        257151,
    ]


def test_a_tokenizer_can_be_given(tmp_path: Path, shapes_checkpoint: Path) -> None:
    checkpoint = write(tmp_path, "--tokenizer", str(shapes_checkpoint))
    assert read_tokenizer(tmp_path, checkpoint.config).config.image_id == 2152


def test_the_hub_dialect_of_paligemma2_3b_leaves_out_defaults(tmp_path: Path) -> None:
    vision, whole = official("paligemma2-3b-224")
    text = dataclasses.replace(whole, num_layers=1, hidden_size=64, vocab_size=2240)
    assert text.gemma2 is not None
    text = dataclasses.replace(
        text, gemma2=dataclasses.replace(text.gemma2, sliding_layers=(True,))
    )
    small = dataclasses.replace(vision, num_layers=1, hidden_size=64, num_heads=4)
    write_checkpoint(tmp_path, vision=small, text=text)
    fields = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert not {"num_attention_heads", "head_dim", "sliding_window"} & set(fields)
    assert not [name for name in fields if "softcapping" in name or "scalar" in name]
    assert open_checkpoint(tmp_path).config.text == text


def test_any_size_can_be_written(tmp_path: Path) -> None:
    vision, text = official("paligemma-3b-896", shrink=True)
    write_checkpoint(tmp_path, vision=vision, text=text, dtype="float16", shards=2)
    assert open_checkpoint(tmp_path).tensors["vision.position_embedding.weight"].shape[0] == 4096
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in open_checkpoint(tmp_path).tensors.values()
    )


@pytest.mark.parametrize("options", [["--shards", "0"], ["--dtype", "int8"], ["--model", "x"]])
def test_bad_options_are_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args([str(tmp_path), *options])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        parse_args([str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err


def test_a_tokenizer_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1700"):
        build_tokenizer(100)
