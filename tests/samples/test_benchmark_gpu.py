"""The benchmark on a GPU, without one: what is asked of whom, and what is made of the answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma_edge.runtime import PaliGemma
from paligemma_edge.runtime.diagnostics.benchmark import draw_image
from samples.benchmark import runner, table
from samples.benchmark.transformers_model import Original
from samples.benchmark.with_transformers import MODES

PROMPT = "caption en"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "drawn.png"
    draw_image(path)
    return path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How torch.compile was called; it traces as ever, and leaves the code to Python."""
    calls: list[dict[str, Any]] = []
    compile_: Callable[..., Any] = torch.compile

    def traced(call: Callable[..., Any], **given: Any) -> Any:  # noqa: ANN401
        calls.append(given)
        kept = {name: given[name] for name in ("fullgraph", "dynamic")}
        return compile_(call, **kept, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    return calls


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The tokens that each step chose."""
    seen: list[list[list[int]]] = []
    choose = Original._following

    def watched(self: Original, *arguments: Any) -> Any:  # noqa: ANN401
        tokens = choose(self, *arguments)
        seen.append(tokens.tolist())
        return tokens

    monkeypatch.setattr(Original, "_following", watched)
    return seen


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("mode", MODES)
def test_sequences_step_as_one_does_and_begin_anew_in_each_run(
    mode: str,
    image: Path,
    shapes_checkpoint: Path,
    shapes_model: PaliGemma,
    following: list[list[list[int]]],
    compiled: list[dict[str, Any]],
) -> None:
    original = Original.load(shapes_checkpoint, "float32", compiled=mode == "compiled")
    with original.calm():
        for _ in range(2):
            read = original.read(image, PROMPT, 4)
            for slots in (1, 3):
                assert original.step_seconds(read, slots, 4) > 0
    answer = shapes_model.generate(image, PROMPT, max_new_tokens=5).token_ids
    assert read.token == answer[0]
    alone = [[[token]] for token in answer[1:]]
    together = [[[token]] * 3 for token in answer[1:]]
    assert following == (alone + together) * 2
    settings = {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
    assert [settings.items() <= call.items() for call in compiled] == [True] * (mode == "compiled")


def test_a_cache_of_fixed_size_keeps_its_place(
    image: Path, shapes_checkpoint: Path, compiled: list[dict[str, Any]]
) -> None:
    """What is recorded of a compiled step reads the same memory in each run."""
    original = Original.load(shapes_checkpoint, "float32", compiled=True)
    places = []
    with original.calm():
        for _ in range(2):
            original.step_seconds(original.read(image, PROMPT, 2), 2, 2)
            places.append(original.caches[2].layers[0].keys.data_ptr())
    assert places[0] == places[1]


@pytest.fixture
def gpu_bundle(shapes_copy: Path) -> Path:
    """A bundle whose variant says that it is made for a GPU; nothing opens it."""
    path = shapes_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    made = manifest["variants"]["cpu-fp32"]
    manifest["variants"]["cuda-fp16"] = {**made, "device": "cuda", "recipe": "fp16"}
    path.write_text(json.dumps(manifest))
    return shapes_copy


def asked(bundle: Path, *options: str) -> dict[str, str]:
    parsed = runner.parse_args([str(bundle), "--threads", "1", *options])
    return {n: " ".join(c) for n, c in runner.commands(parsed, Path("drawn.png"))}


def test_each_is_asked_for_the_same_sequences_on_the_gpu(
    gpu_bundle: Path, shapes_checkpoint: Path
) -> None:
    original = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    plan = ("--cuda-graph", "--max-length", "300")
    told = asked(gpu_bundle, "--device", "cuda", "--batch", "1,8,8", *original, *plan)
    assert list(told) == [
        "transformers bfloat16 eager",
        "transformers bfloat16 compiled",
        "cuda-fp16",
        "cuda-fp16, recorded",
    ]
    assert all("--batch 1,8" in command for command in told.values())
    eager, compiled, plain, recorded = told.values()
    assert "--device cuda --mode eager" in eager
    assert "--device cuda --mode compiled" in compiled
    assert plain.endswith("--max-length 300")
    assert recorded == f"{plain} --cuda-graph --max-batch 8"


def test_a_processor_is_asked_as_before(gpu_bundle: Path, shapes_checkpoint: Path) -> None:
    original = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    told = asked(gpu_bundle, *original)
    assert list(told) == ["transformers bfloat16", "transformers float32", "cpu-fp32"]
    assert not any("--device" in command for command in told.values())


def test_no_steps_are_recorded_on_a_processor(
    gpu_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        runner.parse_args([str(gpu_bundle), "--cuda-graph"])
    assert "give --device cuda with it" in capsys.readouterr().err


def result(first: float, steps: dict[int, float], mode: str | None = None) -> dict[str, Any]:
    stages = dict.fromkeys(("preprocess", "vision", "projector", "prefill"), first / 4)
    stepping = [
        {"slots": n, "seconds": {"median": s}, "tokens_per_second": n / s} for n, s in steps.items()
    ]
    return {
        "device": "cuda",
        "gpu": "NVIDIA L4",
        "processor": "a processor",
        "load": 2.0,
        "reading": {k: {"median": s} for k, s in {**stages, "first_token": first}.items()},
        "stepping": stepping,
        "memory": {"peak": 3 * 10**9, "gpu": 5 * 10**9},
        **({} if mode is None else {"mode": mode}),
    }


def test_a_gpu_is_told_beside_both_ways_of_transformers() -> None:
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
    found = {"threads": 4, "results": results}
    heads, *rows, note = table.table(found).splitlines()
    assert heads.split("  ")[-1].strip() == "step ×c"
    measured = "cuda-int4 2.00 20.00 5.00 5.00 10.00 100 400 3.00 5.00 0.25 0.25 0.40 0.50"
    assert rows[2].split() == measured.split()
    assert "than before the load" in note
    assert table.header(found, PROMPT, 4, 2).startswith("NVIDIA L4; a processor, 4 ")


def test_what_was_not_measured_has_no_ratio_and_hides_no_row() -> None:
    results = {
        "transformers bfloat16 eager": result(0.08, {1: 0.04}, "eager"),
        "transformers bfloat16 compiled": {"error": "it broke (exit code 1)"},
        "cuda-int4": result(0.02, {1: 0.01, 8: 0.02}),
    }
    table.add_ratios(results)
    assert list(results["cuda-int4"]["ratios"]) == ["eager"]
    told = table.table({"results": results}).splitlines()
    assert told[2].split()[-4:] == ["0.25", "0.25", "-", "-"]
    assert told[1].split()[8:10] == ["25", "-"]  # tokens in a second of one sequence, and of eight
    assert told[-1] == "transformers bfloat16 compiled: not measured, it broke (exit code 1)"


def test_several_benchmarks_are_one_table(tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "other.json"]
    for file, step in zip(files, (0.01, 0.02), strict=True):
        file.write_text(json.dumps({"results": {"cuda-int4": result(0.1, {1: step})}}))
    told = table.table(table.joined(files)).splitlines()
    rows = [line.split() for line in told[1:3]]
    assert [row[:2] for row in rows] == [["one:", "cuda-int4"], ["other:", "cuda-int4"]]
    assert [row[6] for row in rows] == ["10.00", "20.00"]
