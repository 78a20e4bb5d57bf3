"""Every shipped recipe on a PaliGemma 2, with a window for its answers and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe, shipped
from paligemma_edge.quantize.schemes.cuda_check import check_cuda_graph
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity
from tests.conftest import MakeCheckpoint
from tests.helpers.half_graphs import Array, answers, emulate, load
from tests.helpers.watched import Case
from tests.quantize.conftest import GEMMA2_TEXT, ODD_VISION

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
CUDA = {"cuda-fp16": HALF, "cuda-bf16": BRAIN, "cuda-int8": HALF, "cuda-int4": HALF}
# Of tokens that agree: weights are random here, so that many tokens are about as likely.
KEPT = {"cpu-int8": 0.95, "cpu-int4": 0.65, "cpu-fast": 0.65}
ROTATED = {"cpu-int8", "cpu-int4", "cpu-fast", "cuda-int4"}
# Widths that CUDA's kernels read quickly, as those of the released models are.
TEXT = {**GEMMA2_TEXT, "hidden_size": 128, "intermediate_size": 192}
QUESTIONS = tuple(sample_questions())[:6]


@dataclass(frozen=True)
class Quantized:
    """A bundle with a variant of every recipe."""

    path: Path
    windowed: bool
    reports: Mapping[str, Fidelity]
    notes: tuple[str, ...]


@pytest.fixture(scope="module", params=["full", "hf"])
def quantized(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Quantized:
    checkpoint = make_checkpoint(vision=ODD_VISION, text=TEXT, dtype="bfloat16")
    path, notes = checkpoint / "q.bundle", list[str]()
    export(checkpoint, path, sliding_window=request.param)
    recipes = [load_recipe(name) for name in shipped()]
    options = QuantizeOptions(questions=QUESTIONS, max_new_tokens=12)
    reports = quantize(path, recipes, options, note=notes.append)
    by_name = {report.variant: report for report in reports}
    return Quantized(path, request.param == "hf", by_name, tuple(notes))


def test_every_recipe_gives_a_variant_that_is_whole(quantized: Quantized) -> None:
    bundle = Bundle.open(quantized.path)
    bundle.verify(bundle.manifest.files)
    assert set(bundle.manifest.variants) == {"cpu-fp32", *shipped()}
    for name, variant in bundle.manifest.variants.items():
        reads_prompts = quantized.windowed or name == "cpu-fast"
        assert ("prefill" in variant.graphs) == reads_prompts, name
        for graph in variant.graphs.values():
            onnx.checker.check_model(quantized.path / graph)


def test_a_graph_for_prompts_answers_where_the_decoder_has_windows(quantized: Quantized) -> None:
    for variant in Bundle.open(quantized.path).manifest.variants.values():
        if contract.PREFILL in variant.graphs:
            model = onnx.load(quantized.path / variant.graphs["prefill"], load_external_data=False)
            outputs = [output.name for output in model.graph.output]
            assert (contract.LOGITS in outputs) == quantized.windowed


@pytest.mark.parametrize("name", KEPT)
def test_most_of_the_answers_are_kept(name: str, quantized: Quantized) -> None:
    report = quantized.reports[name]
    assert report.forced_agreement >= KEPT[name]
    assert report.logit_error.mean > 0
    model = PaliGemma(quantized.path, variant=name)
    image = QUESTIONS[0].image
    assert model.generate(image, "caption en", max_new_tokens=12).token_ids


def test_what_cannot_be_rotated_is_a_note_and_no_error(quantized: Quantized) -> None:
    notes = [note.split(":")[0] for note in quantized.notes if "stream is not rotated" in note]
    assert sorted(notes) == sorted(ROTATED)
    for name, report in quantized.reports.items():
        assert any("stream is not rotated" in note for note in report.notes) == (name in ROTATED)


@pytest.mark.parametrize("name", CUDA)
def test_cuda_runs_every_graph_alone_and_quickly(name: str, quantized: Quantized) -> None:
    variant = Bundle.open(quantized.path).manifest.variants[name]
    for graph in (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER, contract.PREFILL):
        if graph in variant.graphs:
            model = ir.load(quantized.path / variant.graphs[graph])
            assert check_cuda_graph(graph, model, CUDA[name]) == []


@pytest.mark.parametrize("case", ["gemma2", "windowed"], indirect=True)
@pytest.mark.parametrize(("dtype", "tolerance"), [(HALF, 1e-2), (BRAIN, 5e-2)])
def test_half_precision_answers_as_float32_does(
    dtype: ir.DataType, tolerance: float, case: Case, exact: Array, tmp_path: Path
) -> None:
    graphs = case.graphs()
    for model in graphs.values():
        to_half(model, dtype)
        emulate(model, dtype)
    logits = answers(graphs, case.config, case.pixels[:1], tmp_path / "half")
    np.testing.assert_allclose(logits, exact, rtol=0, atol=tolerance * np.abs(exact).max())
    assert not np.array_equal(logits, exact)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_norms_the_stream_and_the_bound_of_logits_are_float32(
    dtype: ir.DataType, gemma2_bundle: Path
) -> None:
    model = load(gemma2_bundle)["decoder"]
    to_half(model, dtype)
    wanted = {"MatMul": dtype, "GroupQueryAttention": dtype, "Gemm": dtype, "Gelu": dtype}
    wanted |= dict.fromkeys(("RMSNormalization", "Add", "Div", "Tanh"), FLOAT)
    seen = {node.op_type for node in model.graph}
    assert set(wanted) <= seen
    for node in model.graph:
        if node.op_type in wanted:
            assert node.outputs[0].dtype == wanted[node.op_type], node
