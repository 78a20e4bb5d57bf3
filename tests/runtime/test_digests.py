"""No file reaches ONNX Runtime before its digest was compared, and all are compared at the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from paligemma_edge.runtime import digests
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.bundle_writer import new_bundle
from paligemma_edge.runtime.digests import comparing
from paligemma_edge.runtime.errors import BundleError
from tests.runtime.small_bundle import GRAPH, manifest

MINE, OTHER, INNER = "cpu-fp32/a.data", "cpu-fp32/b.data", "cpu-fp32/inner/c.data"
NAMES = (GRAPH, MINE, OTHER, INNER)


def write(path: Path, graph: bytes) -> Bundle:
    with new_bundle(path) as writer:
        writer.write(GRAPH, graph)
        writer.write("tokenizer.model", b"pieces")
        for name in (MINE, OTHER, INNER):
            writer.write(name, b"whole")
        empty = manifest()
        variant = dataclasses.replace(empty.variants["cpu-fp32"], files=NAMES)
        writer.finish(dataclasses.replace(empty, variants={"cpu-fp32": variant}))
    return Bundle.open(path)


def damage(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(b"W" + (bundle.path / name).read_bytes()[1:])


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (b"..a.data..", MINE),
        (b"..A.DATA..", MINE),
        (b"../x/./b.data", OTHER),
        (b"inner/c.data", INNER),
        (b"..a.data..", GRAPH),
    ],
)
def test_a_graph_waits_for_all_that_it_can_read(tmp_path: Path, graph: bytes, name: str) -> None:
    bundle = write(tmp_path / "a.bundle", graph)
    damage(bundle, name)
    opened = []
    with (
        pytest.raises(BundleError, match=f"{name} differs from its sha256"),
        comparing(bundle, NAMES) as found,
    ):
        opened.append(found.graph(GRAPH))
    assert not opened


def test_what_no_graph_reads_is_compared_at_the_end(tmp_path: Path) -> None:
    bundle = write(tmp_path / "a.bundle", b"..a.data..")
    damage(bundle, OTHER)
    opened = []
    with (
        pytest.raises(BundleError, match=f"{OTHER} differs from its sha256"),
        comparing(bundle, NAMES) as found,
    ):
        opened.append(found.graph(GRAPH))
    assert opened == [bundle.path / GRAPH]


def test_a_graph_too_large_to_search_waits_for_all_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_LARGE", 3)
    bundle = write(tmp_path / "a.bundle", b"nothing")
    damage(bundle, INNER)
    opened = []
    with (
        pytest.raises(BundleError, match=f"{INNER} differs"),
        comparing(bundle, NAMES) as found,
    ):
        opened.append(found.graph(GRAPH))
    assert not opened


def test_a_missing_file_is_told_before_any_is_read(tmp_path: Path) -> None:
    bundle = write(tmp_path / "a.bundle", b"graph")
    (bundle.path / OTHER).unlink()
    with pytest.raises(BundleError, match=f"{OTHER} is missing"), comparing(bundle, NAMES):
        pytest.fail("it was opened")
