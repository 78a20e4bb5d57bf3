"""The benchmark: variants and transformers on the same question, each in its own process."""

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

from paligemma_edge.runtime import PaliGemma
from paligemma_edge.runtime.diagnostics.benchmark import draw_image
from samples.benchmark import runner, table, transformers_model
from samples.benchmark.transformers_model import Original
from samples.benchmark.with_transformers import count_parameters, shortage

FEW = ("--runs", "1", "--steps", "2", "--threads", "1")
PROMPT = "caption en"


def result(first_token: float, step: float) -> dict[str, Any]:
    stages = dict.fromkeys(("preprocess", "vision", "projector", "prefill"), first_token / 4)
    reading = {name: {"median": s} for name, s in {**stages, "first_token": first_token}.items()}
    stepping = [{"slots": 1, "seconds": {"median": step}, "tokens_per_second": 1 / step}]
    return {"load": 1.0, "reading": reading, "stepping": stepping, "memory": {"peak": 10**9}}


def test_a_bundle_beside_transformers(
    shapes_bundle: Path,
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "found.json"
    original = ("--against", "transformers", "--checkpoint", str(shapes_checkpoint))
    asked = ("--dtype", "bfloat16", "--prompt", PROMPT, "--json", str(file))
    assert runner.main([str(shapes_bundle), *original, *asked, *FEW]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == ["measuring transformers bfloat16", "measuring cpu-fp32"]

    *lines, last = told.out.splitlines()
    assert json.loads(last) == json.loads(file.read_text())
    results = json.loads(last)["results"]
    assert list(results) == ["transformers bfloat16", "cpu-fp32"]
    torchs, ours = results.values()
    for name in ("image", "prompt", "prompt_tokens", "threads", "steps", "runs", "processor"):
        assert torchs[name] == ours[name], name
    assert torchs["dtype"] == "bfloat16"
    assert torchs["reading"].keys() == ours["reading"].keys()
    check_ratios(torchs, ours)
    (row,) = (line.split() for line in lines if line.startswith("cpu-fp32"))
    assert row[-2:] == [f"{ours['ratios'][name]:.2f}" for name in ("first_token", "step")]
    assert len(row) == 1 + len(table.COLUMNS)


def check_ratios(torchs: dict[str, Any], ours: dict[str, Any]) -> None:
    first, step = (found["reading"]["first_token"]["median"] for found in (ours, torchs))
    assert ours["ratios"]["first_token"] == pytest.approx(first / step)
    steps = [found["stepping"][0]["seconds"]["median"] for found in (ours, torchs)]
    assert ours["ratios"]["step"] == pytest.approx(steps[0] / steps[1])
    assert torchs["ratios"] == {"first_token": 1, "step": 1}


def test_the_original_is_asked_as_the_variant_is(
    shapes_checkpoint: Path,
    shapes_model: PaliGemma,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = SimpleNamespace(perf_counter=itertools.count().__next__)  # one at every look
    monkeypatch.setattr(transformers_model, "time", ticks)
    image = tmp_path / "drawn.png"
    draw_image(image)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        original = Original.load(shapes_checkpoint, "float32")
        read = original.read(image, PROMPT, 3)
    watch = original.watch.seconds
    assert watch.pop("preprocess") > 0
    assert watch == {"vision": 1, "projector": 1, "prefill": 3}  # of 5 for the whole call
    answer = shapes_model.generate(image, PROMPT, max_new_tokens=4).token_ids
    assert read.token == answer[0]
    assert read.prompt_tokens == len(shapes_model.encoder.encode(PROMPT, 1))
    assert read.length == 64 + read.prompt_tokens


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


def test_one_that_fails_does_not_keep_the_others_from_being_measured(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def commands(*_: object) -> list[tuple[str, list[str]]]:
        good = ["-c", f"print('a table'); print({json.dumps(json.dumps(result(1.0, 0.1)))})"]
        return [("bad", ["-c", "import sys; sys.exit('it broke')"]), ("good", good)]

    monkeypatch.setattr(runner, "commands", commands)
    assert runner.main([str(shapes_copy), *FEW]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert found["bad"] == {"error": "it broke (exit code 1)"}
    assert found["good"]["load"] == 1.0


def test_what_does_not_fit_into_memory_is_known_before_it_is_loaded(
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
    ("options", "told"),
    [
        (("--against", "transformers"), "wants --checkpoint"),
        (("--dtype", "bfloat16,int3"), "--dtype 'int3'"),
        (("--variant", "cpu-int1"), "variant is 'cpu-int1'"),
        (("--runs", "0"), "--runs is 0"),
        (("--json", "/no/such/folder/found.json"), "there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    options: tuple[str, ...], told: str, shapes_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.parse_args([str(shapes_bundle), *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
