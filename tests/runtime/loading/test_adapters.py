"""Adapters that are switched on one open model: each answers as its merged twin does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.add_to_bundle import add_adapter
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.diagnostics.prepack import prepack
from paligemma_edge.runtime.errors import BundleError, OptionError
from tests.conftest import MakeCheckpoint
from tests.helpers import adapters as peft
from tests.helpers.gpu_on_host import open_on_host

SEEING = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAYING = r".*language_model.*\.(q_proj|v_proj|down_proj)"
RECIPES = ("cpu-int8", "cpu-int4", "cpu-fast", "cuda-fp16")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(text={"hidden_size": 64, "intermediate_size": 96})


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "seeing": peft.train(checkpoint, folder / "seeing", seed=1, target_modules=SEEING),
        "saying": peft.train(checkpoint, folder / "saying", seed=2, r=2, target_modules=SAYING),
    }


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Path, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "base.bundle"
    export(checkpoint, path)
    quantize(
        path,
        [load_recipe(name) for name in RECIPES],
        QuantizeOptions(calibrate=False, report=False),
    )
    for name, folder in trained.items():
        add_adapter(path, folder, name)
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> PaliGemma:
    return PaliGemma(bundle, variant="cpu-fp32")


@pytest.fixture(scope="module")
def requests(shapes_images: Path) -> list[Any]:
    prompts = ("caption en", "answer en what is it?", "detect star", "ocr")
    return [(shapes_images / f"0{n % 4}.png", prompt) for n, prompt in enumerate(prompts * 2)]


def token_ids(model: PaliGemma, requests: list[Any], **options: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    answers = model.generate_batch(requests, max_new_tokens=8, **options)
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("name", ["seeing", "saying"])
def test_a_switched_adapter_says_what_its_merged_twin_says(
    name: str,
    model: PaliGemma,
    checkpoint: Path,
    trained: dict[str, Path],
    requests: list[Any],
    tmp_path: Path,
) -> None:
    export(checkpoint, tmp_path / "twin.bundle", adapters=[trained[name]])
    twin = token_ids(PaliGemma(tmp_path / "twin.bundle"), requests)
    assert token_ids(model, requests, adapter=name) == twin
    assert twin != token_ids(model, requests)


def test_without_an_adapter_the_base_answers(
    model: PaliGemma, checkpoint: Path, requests: list[Any], tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "plain.bundle")
    assert token_ids(model, requests) == token_ids(PaliGemma(tmp_path / "plain.bundle"), requests)


def test_a_batch_may_have_an_adapter_for_each_request(
    model: PaliGemma, requests: list[Any]
) -> None:
    names = ["saying", None, "seeing", "saying", "seeing", None, None, "saying"]
    alone = [
        token_ids(model, [r], adapter=name)[0] for r, name in zip(requests, names, strict=True)
    ]
    assert token_ids(model, requests, adapter=names, max_batch_size=3) == alone


def test_every_call_can_be_asked_of_an_adapter(model: PaliGemma, requests: list[Any]) -> None:
    image, prompt = requests[0]
    expected = model.generate(image, prompt, max_new_tokens=8, adapter="seeing").text
    assert "".join(model.stream(image, prompt, max_new_tokens=8, adapter="seeing")) == expected
    encoded = model.encode(image, adapter="seeing")
    assert encoded.generate(prompt, max_new_tokens=8).text == expected
    assert not np.array_equal(encoded._features.numpy(), model.encode(image)._features.numpy())
    arguments = ("answer en which?", ["red", "blue"])
    base, other = (model.classify(image, *arguments, adapter=a).log_probs for a in (None, "saying"))
    assert base != other
    for call in (model.caption, model.ocr):
        assert call(image, max_new_tokens=8, adapter="saying").text
    assert model.ask(image, "which?", max_new_tokens=8, adapter="saying").text
    for find in (model.detect, model.segment):
        find(image, "star", max_new_tokens=8, adapter="saying")
    model.run(image, "detect star", max_new_tokens=8, adapter="saying")


@pytest.mark.parametrize("variant", ["cpu-int8", "cpu-int4", "cpu-fast"])
def test_rounded_variants_are_switched_too(
    variant: str, bundle: Path, model: PaliGemma, requests: list[Any]
) -> None:
    """What an adapter changes is the same, whatever rounding does to the base."""
    small = PaliGemma(bundle, variant=variant)
    for name in ("seeing", "saying"):
        actual, exact = (changed_logits(m, name, requests[:4]) for m in (small, model))
        assert np.corrcoef(actual, exact)[0, 1] > 0.9


def changed_logits(model: PaliGemma, name: str, requests: list[Any]) -> NDArray[np.float32]:
    """What an adapter adds to the logits after some prompts."""
    rows = []
    for image, prompt in requests:
        for adapter in (name, None):
            engine, ids = (
                model._loaded.with_adapter(adapter).engine,
                model._loaded.encoder.encode(prompt, 1),
            )
            features = model.encode(image, adapter=adapter)._features
            cache = engine.cache(1, engine.config.image_tokens + len(ids))
            rows.append(engine.prefill(cache, 0, features, ids).answer_logits.copy())
    return np.concatenate([mine - base for mine, base in zip(rows[::2], rows[1::2], strict=True)])


def test_a_gpu_switches_too_and_records_steps_of_each_adapter_apart(
    bundle: Path, model: PaliGemma, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, _ = open_on_host(bundle, "cuda-fp16", monkeypatch, cuda_graph=True, max_batch_size=2)
    names = [None, "seeing", "saying"]
    actual = [token_ids(gpu, requests[:2], adapter=name) for name in names]
    assert [token_ids(gpu, requests[:2], adapter=name) for name in names] == actual
    assert actual != [actual[0]] * 3
    adapters = [gpu._loaded.with_adapter(name).engine.adapter for name in ("seeing", "seeing")]
    assert adapters[0] is adapters[1]  # which was not read again
    planned = gpu._loaded.pipeline.cache_pool._planned
    assert planned is not None
    numbers = [stepper.graph_id for stepper in planned.steppers.values()]
    assert len(set(numbers)) == len(numbers) >= 3


def _stored(bundle: Path, name: str, variant: str) -> dict[str, Any]:
    opened = Bundle.open(bundle)
    with np.load(opened.file(opened.manifest.adapters[name].files[variant])) as arrays:
        return dict(arrays)


def test_what_is_not_there_is_said(model: PaliGemma, requests: list[Any], bundle: Path) -> None:
    image, prompt = requests[0]
    assert model.adapters == ("seeing", "saying")
    with pytest.raises(OptionError, match="adapter is 'nobody', variant cpu-fp32 of the bundle "):
        model.generate(image, prompt, adapter="nobody")
    with pytest.raises(OptionError, match="wanted one name, or one for each"):
        nested: Any = [["seeing"]]
        model.generate_batch([(image, prompt)], adapter=nested)
    unhashable: Any = ["seeing"]
    with pytest.raises(OptionError, match=r"adapter is \['seeing'\]"):
        model.encode(image, adapter=unhashable)
    with pytest.raises(OptionError, match="wanted one name, or one for each of 1 requests"):
        model.generate_batch([(image, prompt)], adapter=["seeing", "saying"])


def test_a_bundle_without_adapters_has_none(shapes_model: PaliGemma, image: Path) -> None:
    assert shapes_model.adapters == ()
    with pytest.raises(OptionError, match="of the bundle has none"):
        shapes_model.generate(image, "caption en", adapter="seeing")


@pytest.fixture
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def test_a_variant_that_an_adapter_was_not_made_for_says_how_to_make_it(
    bundle: Path, tmp_path: Path, image: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["adapters"]["saying"]["files"]["cpu-fp32"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    model = PaliGemma(copy, variant="cpu-fp32")
    assert model.adapters == ("seeing",)
    with pytest.raises(OptionError, match="saying was not made for variant cpu-fp32; run"):
        model.generate(image, "caption en", adapter="saying")


Spoil = Callable[[dict[str, Any]], object]
A = "decoder.layers.0.down_proj.lora_A"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda arrays: arrays.pop(A), "down_proj.lora_B"),
        (lambda arrays: arrays.update({A: arrays[A][:-1]}), "lora_A as float32"),
        (lambda arrays: arrays.update({A: arrays[A][:, :-1]}), "lora_B as float32"),
        (lambda arrays: arrays.update({A: arrays[A].astype(np.float64)}), "lora_A as float64"),
        (lambda arrays: arrays.update(other=arrays[A]), "other, which no graph takes"),
    ],
)
def test_weights_that_do_not_fit_the_graphs_are_refused(
    spoil: Spoil, problem: str, bundle: Path, tmp_path: Path, image: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    arrays = _stored(copy, "saying", "cpu-fp32")
    spoil(arrays)
    np.savez(tmp_path / "spoilt.npz", **arrays)
    _replace(copy, "adapters/saying/cpu-fp32.npz", (tmp_path / "spoilt.npz").read_bytes())
    model = PaliGemma(copy, variant="cpu-fp32")
    with pytest.raises(BundleError, match=f"{problem}.*add the adapter again"):
        model.generate(image, "caption en", adapter="saying")


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_file_of_weights_that_is_none_is_one_line(
    data: bytes, bundle: Path, tmp_path: Path, image: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    _replace(copy, "adapters/saying/cpu-fp32.npz", data)
    model = PaliGemma(copy, variant="cpu-fp32")
    with pytest.raises(BundleError, match="cannot be read as adapter weights"):
        model.generate(image, "caption en", adapter="saying")


def test_weights_that_were_changed_are_not_used(bundle: Path, tmp_path: Path, image: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    file = copy / "adapters/saying/cpu-fp32.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    model = PaliGemma(copy, variant="cpu-fp32")
    assert model.generate(image, "caption en", adapter="seeing", max_new_tokens=2)
    with pytest.raises(BundleError, match="differs from its sha256"):
        model.generate(image, "caption en", adapter="saying")


def _replace(bundle: Path, name: str, data: bytes) -> None:
    """Put other contents in place of a listed file, digest and all."""
    amend_bundle(Bundle.open(bundle), {name: data}, lambda manifest: manifest)


def test_the_command_line_switches(
    bundle: Path, model: PaliGemma, requests: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    image, prompt = requests[0]
    command = ["run", str(bundle), prompt, str(image), "--variant", "cpu-fp32"]
    command += ["--max-new-tokens", "8", "--json"]
    for extra in ([], ["--adapter", "seeing"], ["--adapter", "saying", "--together"]):
        assert cli.main([*command, *extra]) == 0
        adapter = extra[1] if extra else None
        expected = model.generate(image, prompt, max_new_tokens=8, adapter=adapter)
        record = json.loads(capsys.readouterr().out)
        assert (record["text"], record.get("adapter")) == (expected.text, adapter)
    assert cli.main([*command, "--adapter", "nobody"]) == 2
    assert "has seeing, saying" in capsys.readouterr().err


def test_a_run_is_not_gone_on_with_by_another_adapter(
    bundle: Path, requests: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, prompt = requests[0]
    out = tmp_path / "answers.jsonl"
    command = ["run", str(bundle), prompt, str(image), "--variant", "cpu-fp32", "--out", str(out)]
    assert cli.main([*command, "--adapter", "seeing", "--max-new-tokens", "4"]) == 0
    out.rename(tmp_path / "answers.jsonl.partial")
    assert cli.main([*command, "--adapter", "saying", "--max-new-tokens", "4"]) != 0
    assert capsys.readouterr().err


def test_inspect_and_bench_know_adapters(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(bundle)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"\nadapter +saying: from saying, rank 2, changes ", output)
    options = ["--variant", "cpu-fp32", "--steps", "2", "--runs", "1", "--adapter", "saying"]
    assert cli.main(["bench", str(bundle), *options]) == 0
    output = capsys.readouterr().out
    assert "cpu-fp32, on cpu, adapter saying" in output
    assert json.loads(output.splitlines()[-1])["adapter"] == "saying"


def test_a_variant_with_adapters_is_not_prepacked(bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"variant cpu-int8 has adapters, .* remove the adapters"):
        prepack(bundle, "cpu-int8")


def test_an_adapter_that_a_variant_loses_is_named(
    bundle: Path, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    command = ["adapter", str(copy), str(trained["saying"]), "--name", "saying", "--overwrite"]
    assert cli.main([*command, "--variant", "cpu-fp32", "--variant", "cuda-fp16"]) == 0
    output = capsys.readouterr().out
    assert "saying is no longer there for cpu-int8, cpu-int4, cpu-fast" in output
