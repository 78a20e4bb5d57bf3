"""Bundles: trusted in nothing when read."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import Manifest
from tests.helpers.small_bundle import GRAPH, REPORT, WEIGHTS, manifest, write

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def test_what_was_written_is_read(path: Path) -> None:
    bundle = Bundle.open(path)
    assert bundle.file(GRAPH).read_bytes() == b"graph"
    bundle.verify(bundle.manifest.files)
    assert dataclasses.replace(bundle.manifest, files={}) == manifest()
    assert [p.name for p in path.parent.iterdir()] == ["a.bundle"]


def test_the_manifest_is_plain_json(path: Path) -> None:
    data = json.loads((path / "manifest.json").read_text())
    assert Manifest.from_json(data) == Bundle.open(path).manifest


def _edit(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    data = json.loads((path / "manifest.json").read_text())
    change(data)
    (path / "manifest.json").write_text(json.dumps(data))


def _folder(path: Path) -> None:
    (path / GRAPH).unlink()
    (path / GRAPH).mkdir()


def _pipe(path: Path) -> None:
    (path / GRAPH).unlink()
    os.mkfifo(path / GRAPH)


def _rename_in_manifest(path: Path, name: str) -> None:
    _edit(path, lambda data: data["files"].update({name: data["files"].pop(GRAPH)}))


def _unlist(path: Path) -> None:
    _edit(path, lambda data: data["files"].pop(WEIGHTS))
    _edit(path, lambda data: data["variants"]["cpu-fp32"].update(files=[GRAPH]))


def _graph_on_top(path: Path) -> None:
    (path / GRAPH).rename(path / "decoder.onnx")
    _rename_in_manifest(path, "decoder.onnx")
    _edit(path, lambda data: data["variants"]["cpu-fp32"]["graphs"].update(decoder="decoder.onnx"))


def _adapter(path: Path, **files: str) -> None:
    info = {"source": "", "rank": 1, "graphs": [], "files": files}
    _edit(path, lambda data: data.update(adapters={"one": info}))


def _graphs(**more: object) -> dict[str, object]:
    return {"graphs": {}, "files": [], **more}


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: (p / GRAPH).unlink(), "is missing"),
    "truncated": (lambda p: (p / GRAPH).write_bytes(b"gra"), "has 3 bytes, the manifest says 5"),
    "a folder": (_folder, "not a regular file"),
    "a pipe": (_pipe, "not a regular file"),
    "out of the folder": (lambda p: _rename_in_manifest(p, "../x"), "not a plain path"),
    "absolute": (lambda p: _rename_in_manifest(p, "/etc/passwd"), "not a plain path"),
    "odd name": (lambda p: _rename_in_manifest(p, "a\nb"), "not a plain path"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "not a bundle"),
    "no JSON": (lambda p: (p / "manifest.json").write_text("{"), "is not JSON"),
    "deep JSON": (lambda p: (p / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "schema version None"),
    "newer schema": (lambda p: _edit(p, lambda d: d.update(schema_version="4.0")), "'4.0'"),
    "missing field": (lambda p: _edit(p, lambda d: d["model"].pop("head_dim")), "no head_dim"),
    "wrong type": (lambda p: _edit(p, lambda d: d["model"].update(head_dim="4")), "head_dim"),
    "true for a number": (lambda p: _edit(p, lambda d: d["model"].update(head_dim=True)), "True"),
    "odd variant": (
        lambda p: _edit(p, lambda d: d["variants"].update({"a\x1b[2J": d["variants"]["cpu-fp32"]})),
        r"'a\\x1b\[2J' is no name of a variant",
    ),
    "many origins": (
        lambda p: _edit(p, lambda d: d.update(source={str(n): "x" for n in range(99)})),
        "number of entries of source is 99",
    ),
    "odd key": (
        lambda p: _edit(p, lambda d: d["files"].update({"\x1b" + "x" * 9999: 1})),
        r"manifest\.files\.\\x1bxxx",
    ),
    "weights not listed": (_unlist, "'cpu-fp32/decoder.onnx.data' is not in manifest.json"),
    "a file too many": (lambda p: (p / "cpu-fp32/x").write_bytes(b""), "'cpu-fp32/x' is not in"),
    "a link too many": (lambda p: (p / "cpu-fp32/x").symlink_to("/etc"), "'cpu-fp32/x' is not in"),
    "an adapter of no file": (_adapter, "adapter one lacks any file"),
    "an adapter that is not listed": (
        lambda p: _adapter(p, **{"cpu-fp32": "adapters/one/cpu-fp32.npz"}),
        "adapter one lacks 'adapters/one/cpu-fp32.npz'",
    ),
    "an adapter for no variant": (lambda p: _adapter(p, other=GRAPH), "'other', no variant"),
    "prepacked of nothing": (
        lambda p: _edit(p, lambda d: d.update(prepacked={"x": _graphs(device="")})),
        "prepacked is for 'x', no variant",
    ),
    "LoRA graphs of nothing": (
        lambda p: _edit(p, lambda d: d.update(lora_graphs={"x": _graphs()})),
        "lora_graphs is for 'x', no variant",
    ),
    "half a character": (
        lambda p: _edit(p, lambda d: d["source"].update(checkpoint="\ud800")),
        "wanted text of whole characters",
    ),
    "half a character as a name": (
        lambda p: _edit(p, lambda d: d["source"].update({"\udfff": ""})),
        "wanted text of whole characters",
    ),
    "huge weights": (
        lambda p: _edit(p, lambda d: d["variants"]["cpu-fp32"].update(memory_bytes=10**400)),
        "memory_bytes is 1000",
    ),
    "a negative size": (
        lambda p: _edit(p, lambda d: d["files"][GRAPH].update(bytes=-1)),
        "bytes is -1",
    ),
    "a folder too many": (lambda p: (p / "cpu-fp32/x").mkdir(), "'cpu-fp32/x' is not in"),
    "a graph in no folder": (_graph_on_top, "not in a folder"),
    "absent folder": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_in_one_line(path: Path, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises(BundleError, match=message) as error:
        Bundle.open(path)
    assert "\n" not in str(error.value).replace("a\nb", "")


def test_a_flipped_bit_is_found(path: Path) -> None:
    (path / GRAPH).write_bytes(b"grapi")
    with pytest.raises(BundleError, match="differs from its sha256"):
        Bundle.open(path).verify([GRAPH])


def test_newer_minor_schema_with_unknown_fields_is_read(path: Path) -> None:
    _edit(path, lambda data: data.update(schema_version="3.7", something_new=3))
    assert Bundle.open(path).manifest.schema_version == "3.7"


def test_a_file_that_is_not_listed_is_no_part_of_the_bundle(path: Path) -> None:
    (path / "stranger").write_bytes(b"x")
    with pytest.raises(BundleError, match="lists no file"):
        Bundle.open(path).file("stranger")


def test_what_lies_beside_a_graph_is_verified_whatever_the_variant_lists(path: Path) -> None:
    _edit(path, lambda data: data["variants"]["cpu-fp32"].update(files=[]))
    (path / WEIGHTS).write_bytes(b"weightz")
    bundle = Bundle.open(path)
    names = bundle.variant_files(bundle.manifest.variants["cpu-fp32"])
    assert names == (GRAPH, WEIGHTS)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data differs"):
        bundle.verify(names)


REPORT_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "other size": (lambda p: p.write_bytes(b""), "has 0 bytes, the manifest says 2"),
}


@pytest.mark.parametrize("damage", REPORT_DAMAGES)
def test_a_damaged_report_is_reported_and_the_model_is_usable(path: Path, damage: str) -> None:
    amend_bundle(Bundle.open(path), {REPORT: b"{}"}, lambda m: m)
    harm, message = REPORT_DAMAGES[damage]
    harm(path / REPORT)
    bundle = Bundle.open(path)
    bundle.verify(bundle.model_files())
    for use in (bundle.file, lambda name: bundle.verify([name])):
        with pytest.raises(BundleError, match=message):
            use(REPORT)
    amend_bundle(bundle, {REPORT: b"[]"}, lambda m: m)
    assert "paligemma-edge verify" in _refusal(bundle)
    repaired = Bundle.open(path)
    repaired.verify(repaired.manifest.files)


def _refusal(bundle: Bundle) -> str:
    """Of a report that is not what this manifest says."""
    with pytest.raises(BundleError) as error:
        bundle.verify([REPORT])
    return str(error.value)


@pytest.fixture
def mine() -> Iterator[Path]:
    """A bundle of a user who is not root, as whom the test runs on."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        try:
            if user == 0:
                os.seteuid(NOBODY)
            write(Path(folder, "a.bundle"))
            yield Path(folder, "a.bundle")
        except OSError as error:
            pytest.skip(f"cannot become another user: {error}")
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("name", [".", "cpu-fp32", "manifest.json"])
def test_what_may_not_be_read_is_one_line(mine: Path, name: str) -> None:
    (mine / name).chmod(0)
    with pytest.raises(BundleError, match="Permission denied; check the path") as error:
        Bundle.open(mine)
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_is_one_line(mine: Path) -> None:
    (mine / WEIGHTS).chmod(0)
    bundle = Bundle.open(mine)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data: Permission denied"):
        bundle.verify(bundle.manifest.files)


def test_a_name_that_is_too_long_is_one_line(path: Path) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        Bundle.open(path / ("x" * 300))
    _edit(path, lambda data: data["files"].update({"x" * 300: data["files"][GRAPH]}))
    bundle = Bundle.open(path)
    with pytest.raises(BundleError, match="File name too long"):
        bundle.verify(bundle.manifest.files)


@pytest.mark.parametrize("name", [GRAPH, "manifest.json"])
def test_a_clone_without_its_large_files_is_told_as_such(name: str, path: Path) -> None:
    """As https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md has the example of a pointer."""
    (path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 12345\n"
    )
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert name in str(caught.value)
    assert "is a pointer of Git LFS, not the file itself; run `git lfs pull`" in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_of_peft_is_told_as_such(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(BundleError, match="so it is an adapter as PEFT saves it; export its base"):
        Bundle.open(tmp_path)
