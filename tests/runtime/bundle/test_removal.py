"""What goes with a folder of a bundle, and what stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

import pytest

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle, remove_folder
from paligemma_edge.runtime.bundle.removal import without_folder
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.manifest import LoraGraphs, LoraInfo, Manifest, Prepacked
from tests.helpers.small_bundle import write
from tests.runtime.bundle.test_folder_writer import check_whole, contents, variant

VARIANTS = ("cpu-fp32", "cpu-int4")


def add(path: Path, folder: str, files: list[str], change: Manifest) -> None:
    with extend_bundle(Bundle.open(path), folder) as writer:
        for file in files:
            writer.write(file, file.encode())
        writer.finish(
            lambda m: dataclasses.replace(
                m,
                variants={**m.variants, **change.variants},
                prepacked={**m.prepacked, **change.prepacked},
                lora_graphs={**m.lora_graphs, **change.lora_graphs},
                adapters={**m.adapters, **change.adapters},
            )
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two variants, prepacked and with LoRA graphs; two adapters, one of them for one variant."""
    path = tmp_path / "a.bundle"
    write(path)
    none = dataclasses.replace(Bundle.open(path).manifest, variants={})
    add(path, "cpu-int4", ["cpu-int4/decoder.onnx"], variant("cpu-int4")(none))
    for name in VARIANTS:
        prepacked, lora = f"prepacked/{name}/decoder.onnx", f"lora_graphs/{name}/decoder.onnx"
        made = Prepacked(device="here", graphs={"decoder": prepacked}, files=(prepacked,))
        add(
            path,
            f"prepacked/{name}",
            [prepacked],
            dataclasses.replace(none, prepacked={name: made}),
        )
        graphs = LoraGraphs(graphs={"decoder": lora}, files=(lora,))
        add(
            path,
            f"lora_graphs/{name}",
            [lora],
            dataclasses.replace(none, lora_graphs={name: graphs}),
        )
    for name, variants in (("both", VARIANTS), ("small", VARIANTS[1:])):
        files = {of: f"adapters/{name}/{of}.npz" for of in variants}
        config = LoraInfo(source="lora", rank=8, graphs=(contract.DECODER,), files=files)
        change = dataclasses.replace(none, adapters={name: config})
        add(path, f"adapters/{name}", list(files.values()), change)
    check_whole(path)
    return path


def test_a_variant_takes_with_it_what_was_made_from_it(path: Path) -> None:
    before = contents(path)
    without = remove_folder(Bundle.open(path), "cpu-int4")
    assert check_whole(path).manifest == without
    for kept in (without.variants, without.prepacked, without.lora_graphs):
        assert list(kept) == ["cpu-fp32"]
    assert list(without.adapters) == ["both"]
    assert without.adapters["both"].files == {"cpu-fp32": "adapters/both/cpu-fp32.npz"}
    gone = set(before) - set(contents(path))
    assert gone == {name for name in before if "int4" in name}
    assert not (path / "adapters" / "small").exists()
    assert not (path / "lora_graphs" / "cpu-int4").exists()


def test_an_adapter_goes_alone(path: Path) -> None:
    before = contents(path)
    without = remove_folder(Bundle.open(path), "adapters/both")
    assert list(without.adapters) == ["small"]
    assert list(without.lora_graphs) == list(without.prepacked) == list(VARIANTS)
    gone = set(before) - set(contents(check_whole(path).path))
    assert gone == {f"adapters/both/{name}.npz" for name in VARIANTS}


def test_lora_graphs_are_removed_alone(path: Path) -> None:
    without = remove_folder(Bundle.open(path), "lora_graphs/cpu-fp32")
    assert list(without.lora_graphs) == ["cpu-int4"]
    assert list(without.adapters) == ["both", "small"]
    assert list(without.prepacked) == list(VARIANTS)
    check_whole(path)


def test_a_name_that_begins_alike_is_another_folder(path: Path) -> None:
    bundle = Bundle.open(path)
    for folder in ("adapters/bot", "adapters/both-more", "lora_graphs/cpu-int", "cpu-int"):
        assert without_folder(bundle, PurePosixPath(folder), overwrite=True) == bundle.manifest


@pytest.mark.parametrize(("marked", "left"), [("cpu-fp32", "cpu-fp32"), ("cpu-int4", None)])
def test_a_mark_goes_with_its_variant(path: Path, marked: str, left: str | None) -> None:
    amend_bundle(Bundle.open(path), {}, lambda m: dataclasses.replace(m, default_variant=marked))
    assert remove_folder(Bundle.open(path), "cpu-int4").default_variant == left
    assert check_whole(path).manifest.default_variant == left
