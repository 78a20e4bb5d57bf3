"""The benchmark: variants and transformers on the same prompt, each in its own process."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.diagnostics.benchmark import draw_image
from samples.benchmark import runner, table, transformers_model
from samples.benchmark.transformers_model import TransformersModel
from samples.benchmark.with_transformers import count_parameters, shortage

FEW = ("--runs", "1", "--steps", "2", "--threads", "1")
PROMPT = "caption en"


def result(first_token: float, step: float) -> dict[str, Any]:
    stages = dict.fromkeys(("preprocess", "vision", "projector", "prefill"), first_token / 4)
    reading = {name: {"median": s} for name, s in {**stages, "first_token": first_token}.items()}
    stepping = [{"batch_size": 1, "seconds": {"median": step}, "tokens_per_second": 1 / step}]
    return {"load": 1.0, "reading": reading, "stepping": stepping, "memory": {"peak": 10**9}}


def test_a_bundle_beside_transformers(
    shapes_bundle: Path,
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "report.json"
    against = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    options = ("--dtype", "bfloat16", "--prompt", PROMPT, "--json", str(file))
    assert runner.main([str(shapes_bundle), *against, *options, *FEW]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == ["measuring transformers bfloat16", "measuring cpu-fp32"]

    *lines, last = output.out.splitlines()
    assert json.loads(last) == json.loads(file.read_text())
    results = json.loads(last)["results"]
    assert list(results) == ["transformers bfloat16", "cpu-fp32"]
    theirs, ours = results.values()
    for name in ("image", "prompt", "prompt_tokens", "threads", "steps", "runs", "processor"):
        assert theirs[name] == ours[name], name
    assert theirs["dtype"] == "bfloat16"
    assert theirs["reading"].keys() == ours["reading"].keys()
    check_ratios(theirs, ours)
    (row,) = (line.split() for line in lines if line.startswith("cpu-fp32"))
    assert row[-2:] == [f"{ours['ratios'][name]:.2f}" for name in ("first_token", "step")]
    assert len(row) == 1 + len(table.COLUMNS)


def check_ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    first, step = (result["reading"]["first_token"]["median"] for result in (ours, theirs))
    assert ours["ratios"]["first_token"] == pytest.approx(first / step)
    steps = [result["stepping"][0]["seconds"]["median"] for result in (ours, theirs)]
    assert ours["ratios"]["step"] == pytest.approx(steps[0] / steps[1])
    assert theirs["ratios"] == {"first_token": 1, "step": 1}


def test_transformers_and_the_runtime_get_the_same_tokens(
    shapes_checkpoint: Path,
    shapes_model: PaliGemma,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = SimpleNamespace(perf_counter=itertools.count().__next__)  # one more at every call
    monkeypatch.setattr(transformers_model, "time", ticks)
    image = tmp_path / "drawn.png"
    draw_image(image)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        original = TransformersModel.load(shapes_checkpoint, "float32")
        prompt = original.prefill(image, PROMPT, 3)
    watch = original.watch.seconds
    assert watch.pop("preprocess") > 0
    assert watch == {"vision": 1, "projector": 1, "prefill": 3}  # of 5 for the whole call
    answer = shapes_model.generate(image, PROMPT, max_new_tokens=4).token_ids
    assert prompt.token == answer[0]
    assert prompt.prompt_tokens == len(shapes_model._loaded.encoder.encode(PROMPT, 1))
    assert prompt.length == 64 + prompt.prompt_tokens


def test_transformers_in_bfloat16_takes_one() -> None:
    results = {"transformers bfloat16": result(2.0, 0.5), "cpu-int4": result(1.0, 0.05)}
    table.add_ratios(results)
    assert results["cpu-int4"]["ratios"] == {"first_token": 0.5, "step": 0.1}


def test_without_transformers_in_bfloat16_there_are_no_ratios() -> None:
    skipped = {"skipped": "3 billion parameters take too much"}
    results = {"transformers bfloat16": skipped, "cpu-int4": result(1.0, 0.05)}
    table.add_ratios(results)
    assert "ratios" not in results["cpu-int4"]
    *_, row, note = table.table({"results": results}).splitlines()
    assert row.split()[-2:] == ["-", "-"]
    assert note == f"transformers bfloat16: not measured, {skipped['skipped']}"


def test_a_failed_measurement_does_not_stop_the_others(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def commands(*_: object) -> list[tuple[str, list[str]]]:
        good = ["-c", f"print('a table'); print({json.dumps(json.dumps(result(1.0, 0.1)))})"]
        return [("bad", ["-c", "import sys; sys.exit('it broke')"]), ("good", good)]

    monkeypatch.setattr(runner, "commands", commands)
    assert runner.main([str(shapes_copy), *FEW]) == 1
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert results["bad"] == {"error": "it broke (exit code 1)"}
    assert results["good"]["load"] == 1.0


def test_a_model_too_large_for_memory_is_refused_before_it_is_loaded(
    shapes_checkpoint: Path,
) -> None:
    weights = load_file(shapes_checkpoint / "model.safetensors")
    assert count_parameters(shapes_checkpoint) == sum(w.numel() for w in weights.values())
    assert shortage(3_000_000_000, "float32", 11 << 30) == (
        "3.00 billion parameters in float32 take 12.0 GB, 11.8 GB are free"
    )
    assert shortage(3_000_000_000, "bfloat16", 11 << 30) is None
    assert shortage(3_000_000_000, "float32", None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "transformers"), "needs --checkpoint"),
        (("--dtype", "bfloat16,int3"), "--dtype 'int3'"),
        (("--variant", "cpu-int1"), "variant is 'cpu-int1'"),
        (("--runs", "0"), "--runs is 0"),
        (("--json", "/no/such/folder/report.json"), "its folder does not exist"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    options: tuple[str, ...], message: str, shapes_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.parse_args([str(shapes_bundle), *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
