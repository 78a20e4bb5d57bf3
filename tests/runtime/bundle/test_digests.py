"""No graph is opened before its digest was compared, and nothing computed before all were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from paligemma_edge.runtime import manifest as manifests
from paligemma_edge.runtime.bundle import bundle as bundles
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.digests import comparing
from paligemma_edge.runtime.bundle.writer import new_bundle
from paligemma_edge.runtime.errors import BundleError
from tests.helpers.small_bundle import GRAPH, manifest

MINE, OTHER, INNER = "cpu-fp32/a.data", "cpu-fp32/b.data", "cpu-fp32/inner/c.data"
NAMES = (GRAPH, MINE, OTHER, INNER)

pytestmark = pytest.mark.all_cores


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


def test_a_graph_is_compared_before_it_is_opened(tmp_path: Path) -> None:
    bundle = write(tmp_path / "a.bundle", b"graph")
    damage(bundle, GRAPH)
    opened = []
    with (
        pytest.raises(BundleError, match=f"{GRAPH} differs from its sha256"),
        comparing(bundle, NAMES) as digests,
    ):
        opened.append(digests.file(GRAPH))
    assert not opened


@pytest.mark.parametrize("name", [MINE, OTHER, INNER])
def test_weights_are_compared_before_anything_is_computed(tmp_path: Path, name: str) -> None:
    bundle = write(tmp_path / "a.bundle", b"graph")
    damage(bundle, name)
    opened, computed = [], []
    with pytest.raises(BundleError, match=f"{name} differs from its sha256"):
        with comparing(bundle, NAMES) as digests:
            opened.append(digests.file(GRAPH))
        computed.append("an answer")
    assert opened == [bundle.path / GRAPH]
    assert not computed


@pytest.mark.parametrize("place", [0, 9, 10, 24])
def test_a_large_file_is_compared_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    for module in (manifests, bundles):
        monkeypatch.setattr(module, "PIECE_BYTES", 10)
    bundle = write(tmp_path / "a.bundle", bytes(range(25)))
    pieces = [hashlib.sha256(bytes(range(n, min(n + 10, 25)))).hexdigest() for n in (0, 10, 20)]
    assert list(bundle.manifest.files[GRAPH].pieces) == pieces
    with comparing(bundle, NAMES) as digests:
        assert len(digests.futures[GRAPH]) == 3
    data = bytearray(range(25))
    data[place] ^= 1
    (bundle.path / GRAPH).write_bytes(data)
    with pytest.raises(BundleError, match=f"{GRAPH} differs"), comparing(bundle, NAMES):
        pass


def test_too_few_pieces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifests, bundles):
        monkeypatch.setattr(module, "PIECE_BYTES", 10)
    bundle = write(tmp_path / "a.bundle", bytes(range(25)))
    path = bundle.path / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][GRAPH]["pieces"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="number of pieces is 2"):
        Bundle.open(bundle.path)


def test_a_missing_file_is_reported_before_any_is_read(tmp_path: Path) -> None:
    bundle = write(tmp_path / "a.bundle", b"graph")
    (bundle.path / OTHER).unlink()
    with pytest.raises(BundleError, match=f"{OTHER} is missing"), comparing(bundle, NAMES):
        pytest.fail("it was opened")
