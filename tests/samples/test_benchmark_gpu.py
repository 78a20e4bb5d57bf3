"""The benchmark on a GPU, without one: the commands, and the table made of their results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.diagnostics.benchmark import draw_image
from samples.benchmark import runner, table
from samples.benchmark.transformers_model import MODES, TransformersModel

PROMPT = "caption en"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "drawn.png"
    draw_image(path)
    return path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of torch.compile; it traces as usual, and the eager backend runs the code."""
    calls: list[dict[str, Any]] = []
    compile_: Callable[..., Any] = torch.compile

    def traced(call: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401
        calls.append(options)
        kept = {name: options[name] for name in ("fullgraph", "dynamic")}
        return compile_(call, **kept, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    return calls


@pytest.fixture
def next_tokens(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The tokens that each step chose."""
    seen: list[list[list[int]]] = []
    choose = TransformersModel._next_tokens

    def watched(self: TransformersModel, *arguments: Any) -> Any:  # noqa: ANN401
        tokens = choose(self, *arguments)
        seen.append(tokens.tolist())
        return tokens

    monkeypatch.setattr(TransformersModel, "_next_tokens", watched)
    return seen


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("mode", MODES)
def test_sequences_step_as_one_does_and_start_again_in_each_run(
    mode: str,
    image: Path,
    shapes_checkpoint: Path,
    shapes_model: PaliGemma,
    next_tokens: list[list[list[int]]],
    compiled: list[dict[str, Any]],
) -> None:
    original = TransformersModel.load(shapes_checkpoint, "float32", compiled=mode == "compiled")
    with original.no_gradients():
        for _ in range(2):
            prompt = original.prefill(image, PROMPT, 4)
            for slots in (1, 3):
                assert original.step_seconds(prompt, slots, 4) > 0
    answer = shapes_model.generate(image, PROMPT, max_new_tokens=5).token_ids
    assert prompt.token == answer[0]
    alone = [[[token]] for token in answer[1:]]
    together = [[[token]] * 3 for token in answer[1:]]
    assert next_tokens == (alone + together) * 2
    settings = {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
    assert [settings.items() <= call.items() for call in compiled] == [True] * (mode == "compiled")


def test_a_cache_of_fixed_size_keeps_its_address(
    image: Path, shapes_checkpoint: Path, compiled: list[dict[str, Any]]
) -> None:
    """A recorded step reads the same memory in each run."""
    original = TransformersModel.load(shapes_checkpoint, "float32", compiled=True)
    addresses = []
    with original.no_gradients():
        for _ in range(2):
            original.step_seconds(original.prefill(image, PROMPT, 2), 2, 2)
            addresses.append(original.caches[2].layers[0].keys.data_ptr())
    assert addresses[0] == addresses[1]


@pytest.fixture
def gpu_bundle(shapes_copy: Path) -> Path:
    """A bundle with a variant for a GPU in its manifest; nothing opens it."""
    path = shapes_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    variant = manifest["variants"]["cpu-fp32"]
    manifest["variants"]["cuda-fp16"] = {**variant, "device": "cuda", "recipe": "fp16"}
    path.write_text(json.dumps(manifest))
    return shapes_copy


def commands(bundle: Path, *options: str) -> dict[str, str]:
    parsed = runner.parse_args([str(bundle), "--threads", "1", *options])
    return {n: " ".join(c) for n, c in runner.commands(parsed, Path("drawn.png"))}


def test_all_measure_the_same_batch_sizes_on_the_gpu(
    gpu_bundle: Path, shapes_checkpoint: Path
) -> None:
    against = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    plan = ("--cuda-graph", "--max-length", "300")
    lines = commands(gpu_bundle, "--device", "cuda", "--max-batch-size", "1,8,8", *against, *plan)
    assert list(lines) == [
        "transformers bfloat16 eager",
        "transformers bfloat16 compiled",
        "cuda-fp16",
        "cuda-fp16, recorded",
    ]
    assert all("--max-batch-size 1,8" in command for command in lines.values())
    eager, compiled, plain, recorded = lines.values()
    assert "--device cuda --mode eager" in eager
    assert "--device cuda --mode compiled" in compiled
    assert plain.endswith("--max-length 300")
    assert recorded == f"{plain} --cuda-graph"


def test_on_a_cpu_no_command_names_a_device(gpu_bundle: Path, shapes_checkpoint: Path) -> None:
    against = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    lines = commands(gpu_bundle, *against)
    assert list(lines) == ["transformers bfloat16", "transformers float32", "cpu-fp32"]
    assert not any("--device" in command for command in lines.values())


def test_cuda_graphs_are_refused_on_a_cpu(
    gpu_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        runner.parse_args([str(gpu_bundle), "--cuda-graph"])
    assert "give --device cuda with it" in capsys.readouterr().err


def result(first: float, steps: dict[int, float], mode: str | None = None) -> dict[str, Any]:
    stages = dict.fromkeys(("preprocess", "vision", "projector", "prefill"), first / 4)
    stepping = [
        {"batch_size": n, "seconds": {"median": s}, "tokens_per_second": n / s}
        for n, s in steps.items()
    ]
    return {
        "device": "cuda",
        "gpu": "NVIDIA L4",
        "processor": "a CPU",
        "load": 2.0,
        "reading": {k: {"median": s} for k, s in {**stages, "first_token": first}.items()},
        "stepping": stepping,
        "memory": {"peak": 3 * 10**9, "gpu": 5 * 10**9},
        **({} if mode is None else {"mode": mode}),
    }


def test_a_gpu_has_ratios_to_both_modes_of_transformers() -> None:
    results = {
        "transformers bfloat16 eager": result(0.08, {1: 0.04, 8: 0.05}, "eager"),
        "transformers bfloat16 compiled": result(0.05, {1: 0.02, 8: 0.025}, "compiled"),
        "cuda-int4": result(0.02, {1: 0.01, 8: 0.02}),
    }
    table.add_ratios(results)
    assert results["cuda-int4"]["ratios"] == {
        "eager": {
            "first_token": pytest.approx(0.25),
            "step": pytest.approx(0.25),
            "tokens_per_second": {"1": pytest.approx(4), "8": pytest.approx(2.5)},
        },
        "compiled": {
            "first_token": pytest.approx(0.4),
            "step": pytest.approx(0.5),
            "tokens_per_second": {"1": pytest.approx(2), "8": pytest.approx(1.25)},
        },
    }
    report = {"threads": 4, "results": results}
    head, *rows, note = table.table(report).splitlines()
    assert head.split("  ")[-1].strip() == "step ×c"
    measured = "cuda-int4 2.00 20.00 5.00 5.00 10.00 100 400 3.00 5.00 0.25 0.25 0.40 0.50"
    assert rows[2].split() == measured.split()
    assert "than before the load" in note
    assert table.header(report, PROMPT, 4, 2).startswith("NVIDIA L4; a CPU, 4 ")


def test_what_was_not_measured_has_no_ratio_and_hides_no_row() -> None:
    results = {
        "transformers bfloat16 eager": result(0.08, {1: 0.04}, "eager"),
        "transformers bfloat16 compiled": {"error": "it broke (exit code 1)"},
        "cuda-int4": result(0.02, {1: 0.01, 8: 0.02}),
    }
    table.add_ratios(results)
    assert list(results["cuda-int4"]["ratios"]) == ["eager"]
    lines = table.table({"results": results}).splitlines()
    assert lines[2].split()[-4:] == ["0.25", "0.25", "-", "-"]
    assert lines[1].split()[8:10] == ["25", "-"]  # tokens per second at batch sizes 1 and 8
    assert lines[-1] == "transformers bfloat16 compiled: not measured, it broke (exit code 1)"


def test_several_benchmarks_are_one_table(tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "other.json"]
    for file, step in zip(files, (0.01, 0.02), strict=True):
        file.write_text(json.dumps({"results": {"cuda-int4": result(0.1, {1: step})}}))
    lines = table.table(table.merge(files)).splitlines()
    rows = [line.split() for line in lines[1:3]]
    assert [row[:2] for row in rows] == [["one:", "cuda-int4"], ["other:", "cuda-int4"]]
    assert [row[6] for row in rows] == ["10.00", "20.00"]
