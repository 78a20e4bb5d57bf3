"""A fine-tune's own tokens, behind `<image>`: exported, verified and answered with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers import AddedToken, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from paligemma_edge import PaliGemma
from paligemma_edge.export.checkpoint.joined_file import JoinedFile
from paligemma_edge.export.checkpoint.tensors import FileTensor
from paligemma_edge.export.exporter import export
from paligemma_edge.export.tokenizer.image_last import MovedRow, renumbered
from paligemma_edge.export.verify.reference import Reference
from paligemma_edge.export.verify.samples import Sample
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.diagnostics.self_test import self_test

IMAGE = 2152
PROMPT = "caption en"
EXTRA = ("<extra_0>", "<extra 1>", "<end of the answer>")


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 26), st.integers(1, 27))
def test_a_moved_row_is_read_in_any_part(
    tmp_path_factory: pytest.TempPathFactory, one: int, other: int, start: int, stop: int
) -> None:
    first, last = sorted((one, other))
    values = np.arange(27, dtype=np.float32).reshape(9, 3)
    path = tmp_path_factory.getbasetemp() / "table"
    path.write_bytes(values.tobytes())
    table = FileTensor(JoinedFile.open([path]), 0, ir.DataType.FLOAT, (9, 3), "table")
    moved = MovedRow(table, first, last)
    rows = [*range(first), *range(first + 1, last + 1), first, *range(last + 1, 9)]
    np.testing.assert_array_equal(moved.array(), values[rows])
    if start < stop:
        part = moved.read(start, stop)
        np.testing.assert_array_equal(part, values[rows].reshape(-1)[start:stop])


@pytest.fixture(scope="module")
def fine_tune(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens added and tables resized by transformers; two of the tokens are parts of an answer."""
    folder = tmp_path_factory.mktemp("fine-tune") / "checkpoint"
    processor = PaliGemmaProcessor.from_pretrained(shapes_checkpoint)
    answer = Reference.open(shapes_checkpoint).trace(sample(), 8).tokens
    processor.tokenizer.add_tokens(list(EXTRA[:2]))
    processor.tokenizer.add_tokens([AddedToken(EXTRA[2], special=True, normalized=False)])
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        shapes_checkpoint, dtype=torch.float32
    )
    model.resize_token_embeddings(len(processor.tokenizer))
    table: Any = model.get_input_embeddings().weight  # torch declares it as a module, too
    assert len(table) == IMAGE + 1 + len(EXTRA)
    with torch.no_grad():  # it says a token of its own where it said the second and the sixth
        table[IMAGE + 1] = table[answer[1]] * 1.2
        table[IMAGE + 3] = table[answer[5]] * 1.2
        table[IMAGE] = table[answer[0]] * 1.5  # the most likely, were it not the image's
    model.generation_config.eos_token_id = [1, IMAGE + 3]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def sample() -> Sample:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8))
    return Sample((image,), PROMPT)


def test_added_tokens_work_from_export_to_answer(fine_tune: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "a.bundle"
    manifest = export(fine_tune, bundle)
    ids = manifest.tokenizer
    assert (ids.image_id, ids.eos_ids) == (IMAGE + 3, (1, IMAGE + 2))
    original = Reference.open(fine_tune)
    trace = original.trace(sample(), 12)
    assert {IMAGE + 1, IMAGE + 3} & set(trace.tokens), "the answer has none of the added tokens"
    (image,) = sample().images
    model = PaliGemma(bundle, device="cpu")
    answer = model.generate(image, PROMPT, max_new_tokens=12)
    assert answer.token_ids == tuple(renumbered(token, IMAGE) for token in trace.tokens)
    prompts = [f"detect {EXTRA[0]} ; a{EXTRA[1]}b", PROMPT]
    samples = [Sample(sample().images, prompt) for prompt in prompts]
    report = verify(bundle, fine_tune, samples=samples, max_new_tokens=12)
    assert report.passed
    assert self_test(bundle).passed


def test_a_row_that_was_not_moved_is_noticed(
    fine_tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "a.bundle"
    with monkeypatch.context() as patch:
        patch.setattr("paligemma_edge.export.source._renumbered", lambda tensors, _: tensors)
        export(fine_tune, bundle)
    report = verify(bundle, fine_tune, samples=[sample()], max_new_tokens=4)
    assert not report.passed


def test_the_tables_row_is_the_original_ones(fine_tune: Path, tmp_path: Path) -> None:
    (key,) = [key for key in load_file(fine_tune / "model.safetensors") if "embed_tokens" in key]
    table = load_file(fine_tune / "model.safetensors")[key]
    copy = Path(shutil.copytree(fine_tune, tmp_path / "copy"))
    export(copy, tmp_path / "a.bundle")
    data = (tmp_path / "a.bundle" / "cpu-fp32" / "decoder.onnx.data").read_bytes()
    rows = [*range(IMAGE), *range(IMAGE + 1, len(table)), IMAGE]
    assert table[rows].tobytes() in data
