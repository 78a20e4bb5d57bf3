"""Adapters that cannot be added, and failures while adding one: the bundle does not change."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma_edge.export.lora import add_to_bundle
from paligemma_edge.export.lora.add_to_bundle import add_adapter, remove_adapter
from paligemma_edge.export.lora.variant_graphs import LoraVariant
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.quantize.transforms.changes_file import CHANGES_FILE
from paligemma_edge.runtime.bundle import staging
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError, CheckpointError, OptionError, OutputError
from paligemma_edge.runtime.manifest import SCHEMA_VERSION
from tests.conftest import MakeCheckpoint
from tests.helpers import adapters as peft
from tests.helpers.adapters import CONFIG, WEIGHTS, edit
from tests.helpers.killed import at_each_step
from tests.helpers.lora_graphs import logits
from tests.helpers.lora_models import SIZES, Model, check_whole, contents


def add_error(
    small: Model, adapter: Path, name: str = "mine", kind: type[Exception] = CheckpointError
) -> str:
    """The error message; the bundle does not change."""
    before = contents(small.bundle)
    with pytest.raises(kind) as caught:
        add_adapter(small.bundle, adapter, name)
    assert "\n" not in str(caught.value)
    assert contents(small.bundle) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": "all-linear", "use_dora": True}, "has DoRA on decoder.layers.{0-1}."),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector"]},
            "replaces whole tensors, which are projector.bias, projector.weight; it cannot be",
        ),
        ({"target_modules": ["q_proj"], "bias": "all"}, "replaces whole tensors, which are"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
            "which are decoder.layers.{0-1}.input_layernorm.weight;",
        ),
        (
            {"target_modules": ["patch_embedding", "position_embedding", "q_proj"]},
            "changes vision.patch_embedding, vision.position_embedding, wanted only linear layers",
        ),
        (
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["embed_tokens"],
                "ensure_weight_tying": True,
            },
            "which are decoder.embed_tokens.weight;",
        ),
        ({"target_modules": ["q_proj", "lm_head"]}, "has a LoRA on lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "has a LoRA on decoder.embed_tokens"),
    ],
)
def test_adapters_that_can_only_be_merged(
    options: dict[str, Any], message: str, small: Model, tmp_path: Path
) -> None:
    error = add_error(small, peft.train(small.base, tmp_path / "lora", **options))
    assert message in error
    if "LoRA on" not in error:
        assert "merge it into a bundle of its own with `paligemma-edge export --adapter`" in error


def test_an_adapter_of_another_base(
    small: Model, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    wide = make_checkpoint(text={"hidden_size": 96})
    adapter = peft.train(wide, tmp_path / "wide", target_modules=["q_proj"])
    assert "give an adapter and the base that it was trained on" in add_error(small, adapter)
    deep = make_checkpoint(text={**SIZES, "num_hidden_layers": 3})
    adapter = peft.train(deep, tmp_path / "deep", target_modules=["q_proj"])
    assert "changes layers that this PaliGemma does not have" in add_error(small, adapter)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", ".a", "-a", "a b", "ä", "a\nb", "a\0", "x" * 101]
)
def test_names_that_are_not_plain(name: str, small: Model) -> None:
    message = add_error(small, small.adapter, name, OptionError)
    assert "wanted a plain name of at most 100 letters" in message


def test_a_missing_variant(small: Model) -> None:
    before = contents(small.bundle)
    with pytest.raises(OptionError, match=r"variant is 'cpu-int4', bundle .* has cpu-fp32"):
        add_adapter(small.bundle, small.adapter, "a", variants=["cpu-fp32", "cpu-int4"])
    assert contents(small.bundle) == before


def test_a_missing_adapter(small: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"adapter is 'a', which .* no longer has; it has none"):
        remove_adapter(small.bundle, "a")
    add_adapter(small.bundle, small.adapter, "one")
    with pytest.raises(OptionError, match=r"adapter is '\.\./one', .* it has one"):
        remove_adapter(small.bundle, "../one")
    assert "has no adapter_config.json" in add_error(small, tmp_path / "absent")
    with pytest.raises(BundleError, match="does not exist"):
        add_adapter(tmp_path / "absent.bundle", small.adapter, "a")


def test_a_variant_without_a_record_of_its_changes(small: Model) -> None:
    quantize(
        small.bundle, [load_recipe("cpu-int8")], QuantizeOptions(calibrate=False, report=False)
    )
    file = f"cpu-int8/{CHANGES_FILE}"
    (small.bundle / file).unlink()
    data = json.loads((small.bundle / "manifest.json").read_bytes())
    del data["files"][file]
    data["variants"]["cpu-int8"]["files"].remove(file)
    (small.bundle / "manifest.json").write_text(json.dumps(data))
    message = add_error(small, small.adapter, kind=BundleError)
    assert "variant cpu-int8" in message
    assert "has no changes.npz" in message
    assert "quantize it again with --overwrite, or name other variants" in message
    add_adapter(small.bundle, small.adapter, "one", variants=["cpu-fp32"])
    assert check_whole(small.bundle).manifest.schema_version == SCHEMA_VERSION


@pytest.mark.parametrize("name", ["cpu-int8/decoder.onnx", f"cpu-int8/{CHANGES_FILE}"])
def test_a_damaged_variant(name: str, small: Model) -> None:
    quantize(
        small.bundle, [load_recipe("cpu-int8")], QuantizeOptions(calibrate=False, report=False)
    )
    data = bytearray((small.bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (small.bundle / name).write_bytes(data)
    message = add_error(small, small.adapter, kind=BundleError)
    assert f"{name} differs from its sha256" in message


def test_nan_values(small: Model, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(small.adapter, tmp_path / "lora"))
    tensors = load_file(adapter / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = torch.nan
    save_file(tensors, adapter / WEIGHTS)
    message = add_error(small, adapter)
    assert f"holds NaN or Inf in {name}; the adapter is damaged" in message


def test_values_that_only_the_scale_makes_infinite(small: Model, tmp_path: Path) -> None:
    adapter = edit(Path(shutil.copytree(small.adapter, tmp_path / "lora")), lora_alpha=4e6)
    tensors = load_file(adapter / WEIGHTS)
    name = next(name for name in sorted(tensors) if "lora_B" in name and "v_proj" not in name)
    tensors[name][0, 0] = 1e37
    save_file(tensors, adapter / WEIGHTS)
    assert f"lora scales {name} by " in add_error(small, adapter)


def test_values_beyond_float16(model: Model, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model.bundle, tmp_path / "copy.bundle"))
    adapter = edit(Path(shutil.copytree(model.adapter, tmp_path / "lora")), lora_alpha=4e6)
    big = Model(model.base, path, adapter)
    message = add_error(big, adapter, kind=OptionError)
    assert "float16 does not reach that far; name variants with --variant" in message
    add_adapter(path, adapter, "mine", variants=["cpu-fp32", "cuda-bf16"])


def test_a_damaged_adapter(small: Model, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(small.adapter, tmp_path / "lora"))
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-8])
    assert "not a sound safetensors file" in add_error(small, adapter)
    (adapter / CONFIG).write_text("{")
    assert "cannot be read as JSON" in add_error(small, adapter)


# --- failures while an adapter is added


def state(path: Path) -> dict[str, object]:
    """The bundle's content, whatever the order of the manifest's lines."""
    return {**contents(path), "manifest.json": Bundle.open(path).manifest}


FAILURES: dict[str, tuple[object, str]] = {
    "inputs": (add_to_bundle, "_write_inputs"),
    "graphs": (LoraVariant, "lora_graph"),
    "graphs done": (add_to_bundle, "_extend_manifest"),
    "records": (staging.StagedFiles, "records"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("place", FAILURES)
@pytest.mark.parametrize("again", [False, True])
def test_a_failure_changes_nothing(
    place: str, error: BaseException, again: bool, small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if again:
        add_adapter(small.bundle, small.adapter, "one")
    before = state(small.bundle)

    def fail(*_: object, **__: object) -> None:
        raise error

    owner, name = FAILURES[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
            add_adapter(small.bundle, small.adapter, "one", overwrite=again)
    assert state(small.bundle) == before
    add_adapter(small.bundle, small.adapter, "one", overwrite=again)
    check_whole(small.bundle)


def test_graphs_left_by_a_killed_process_do_no_harm(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the graphs and before the adapter: nothing tidies up."""
    before, plain = contents(small.bundle), logits(small.bundle, "cpu-fp32", small.seen)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(add_to_bundle, "_extend_manifest", fail)
        patch.setattr(add_to_bundle, "_remove_unneeded", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            add_adapter(small.bundle, small.adapter, "one")
    manifest = check_whole(small.bundle).manifest
    assert (list(manifest.lora_graphs), manifest.adapters) == (["cpu-fp32"], {})
    np.testing.assert_array_equal(logits(small.bundle, "cpu-fp32", small.seen, {}), plain)
    add_adapter(small.bundle, small.adapter, "one")
    check_whole(small.bundle)
    remove_adapter(small.bundle, "one")
    assert contents(small.bundle) == before


def remove_one(path: Path) -> None:
    remove_adapter(path, "one")


def test_a_removal_that_was_killed_at_any_step_is_finished_by_the_next(small: Model) -> None:
    before = contents(small.bundle)
    add_adapter(small.bundle, small.adapter, "one")
    outcomes = set()
    for left in at_each_step(small.bundle, f"{__name__}:remove_one"):
        Bundle.open(left).verify(Bundle.open(left).model_files())
        try:
            remove_adapter(left, "one")
            outcomes.add("finished")
        except OptionError as error:  # nothing was left to remove
            assert "does not have or no longer has; it has none" in str(error)
            outcomes.add("was done")
        check_whole(left)
        assert contents(left) == before
    assert outcomes == {"finished", "was done"}


def test_a_removal_that_was_killed_leaves_the_other_adapters(small: Model) -> None:
    add_adapter(small.bundle, small.adapter, "one")
    with_one = contents(small.bundle)
    add_adapter(small.bundle, small.adapter, "two")
    (small.bundle / "adapters/three").mkdir()
    (small.bundle / "adapters/three/cpu-fp32.npz").write_bytes(b"left behind")
    remove_adapter(small.bundle, "three")
    check_whole(small.bundle)
    with pytest.raises(OptionError, match="it has one, two"):
        remove_adapter(small.bundle, "three")
    with pytest.raises(OptionError, match=r"'\.\./one'"):
        remove_adapter(small.bundle, "../one")
    remove_adapter(small.bundle, "two")
    assert contents(small.bundle) == with_one


def test_a_full_disk_is_noticed_before_writing(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(small.bundle)
    usage = shutil.disk_usage(small.bundle)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match="free some or choose another disk"):
            add_adapter(small.bundle, small.adapter, "one")
    assert contents(small.bundle) == before


def test_a_variant_that_is_replaced_meanwhile(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = QuantizeOptions(calibrate=False, report=False, overwrite=True)
    quantize(small.bundle, [load_recipe("cpu-int8")], plain)
    write = add_to_bundle._write_inputs

    def late(*arguments: Any) -> None:  # noqa: ANN401 - passed on
        write(*arguments)
        quantize(small.bundle, [load_recipe("cpu-int4")], plain)
        rounded = dataclasses.replace(load_recipe("cpu-int4"), name="cpu-int8")
        quantize(small.bundle, [rounded], plain)

    monkeypatch.setattr(add_to_bundle, "_write_inputs", late)
    with pytest.raises(BundleError, match="was replaced meanwhile; run the command again"):
        add_adapter(small.bundle, small.adapter, "one", variants=["cpu-int8"])
    manifest = check_whole(small.bundle).manifest
    assert (manifest.adapters, manifest.lora_graphs) == ({}, {})


def test_graphs_that_are_removed_meanwhile(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    add_adapter(small.bundle, small.adapter, "one")
    require = add_to_bundle._require_graphs

    def late(*arguments: Any, rebuild: bool) -> None:  # noqa: ANN401 - passed on
        require(*arguments, rebuild=rebuild)
        remove_adapter(small.bundle, "one")

    monkeypatch.setattr(add_to_bundle, "_require_graphs", late)
    with pytest.raises(BundleError, match="LoRA graphs of variant cpu-fp32 were removed meanwhile"):
        add_adapter(small.bundle, small.adapter, "two")
    assert check_whole(small.bundle).manifest.adapters == {}
