"""Bundles: whole or not at all when written, trusted in nothing when read."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge.runtime import bundle_writer, contract
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.bundle_writer import amend_bundle, new_bundle
from paligemma_edge.runtime.contract import (
    ImageFacts,
    Manifest,
    ModelFacts,
    TokenizerFacts,
    Variant,
)
from paligemma_edge.runtime.errors import BundleError, OutputError

GRAPH = "cpu-fp32/decoder.onnx"


def manifest() -> Manifest:
    return Manifest(
        schema_version=contract.SCHEMA_VERSION,
        created_by="a test",
        source={"checkpoint": "none"},
        model=ModelFacts(
            family="paligemma",
            image_tokens=4,
            hidden_size=8,
            num_layers=1,
            num_kv_heads=1,
            head_dim=4,
            vocab_size=16,
            max_length=32,
        ),
        tokenizer=TokenizerFacts(
            file="tokenizer.model",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            newline_id=3,
            first_loc_id=4,
            first_seg_id=5,
            image_id=6,
        ),
        image=ImageFacts(
            size=28, resample="bicubic", rescale_factor=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        variants={
            "cpu-fp32": Variant(
                device="cpu",
                recipe="fp32",
                graphs={"decoder": GRAPH},
                weight_dtype="float32",
                compute_dtype="float32",
                memory_bytes=1,
                files=(GRAPH,),
            )
        },
    )


def write(target: Path, *, overwrite: bool = False, graph: bytes = b"graph") -> None:
    with new_bundle(target, overwrite=overwrite) as writer:
        writer.write(GRAPH, graph)
        writer.write("tokenizer.model", b"pieces")
        writer.finish(manifest())


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


def _linked(path: Path) -> None:
    (path / GRAPH).rename(path.parent / "outside")
    (path / GRAPH).symlink_to(path.parent / "outside")


def _linked_folder(path: Path) -> None:
    (path / "cpu-fp32").rename(path.parent / "outside")
    (path / "cpu-fp32").symlink_to(path.parent / "outside")


def _folder(path: Path) -> None:
    (path / GRAPH).unlink()
    (path / GRAPH).mkdir()


def _pipe(path: Path) -> None:
    (path / GRAPH).unlink()
    os.mkfifo(path / GRAPH)


def _rename_in_manifest(path: Path, name: str) -> None:
    _edit(path, lambda data: data["files"].update({name: data["files"].pop(GRAPH)}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: (p / GRAPH).unlink(), "is missing"),
    "truncated": (lambda p: (p / GRAPH).write_bytes(b"gra"), "has 3 bytes, the manifest says 5"),
    "symlink": (_linked, "is a link"),
    "symlinked folder": (_linked_folder, "behind a link"),
    "hardlink": (lambda p: os.link(p / GRAPH, p.parent / "other"), "is a link"),
    "a folder": (_folder, "no regular file"),
    "a pipe": (_pipe, "no regular file"),
    "out of the folder": (lambda p: _rename_in_manifest(p, "../x"), "no plain path"),
    "absolute": (lambda p: _rename_in_manifest(p, "/etc/passwd"), "no plain path"),
    "odd name": (lambda p: _rename_in_manifest(p, "a\nb"), "no plain path"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "not a bundle"),
    "no JSON": (lambda p: (p / "manifest.json").write_text("{"), "is not JSON"),
    "deep JSON": (lambda p: (p / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "schema version None"),
    "newer schema": (lambda p: _edit(p, lambda d: d.update(schema_version="2.0")), "'2.0'"),
    "missing field": (lambda p: _edit(p, lambda d: d["model"].pop("head_dim")), "no head_dim"),
    "wrong type": (lambda p: _edit(p, lambda d: d["model"].update(head_dim="4")), "head_dim"),
    "true for a number": (lambda p: _edit(p, lambda d: d["model"].update(head_dim=True)), "True"),
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
    _edit(path, lambda data: data.update(schema_version="1.7", something_new=3))
    assert Bundle.open(path).manifest.schema_version == "1.7"


def test_an_existing_bundle_is_kept(path: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        write(path, graph=b"other")
    assert Bundle.open(path).file(GRAPH).read_bytes() == b"graph"


def test_an_existing_bundle_is_replaced_when_asked(path: Path) -> None:
    write(path, overwrite=True, graph=b"other")
    assert Bundle.open(path).file(GRAPH).read_bytes() == b"other"
    assert [p.name for p in path.parent.iterdir()] == ["a.bundle"]


def test_a_folder_that_is_no_bundle_is_kept(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="not a bundle"):
        write(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos").is_dir()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, BundleError("no")])
def test_a_failed_write_leaves_what_was_there(path: Path, failure: BaseException) -> None:
    with (
        pytest.raises(failure if isinstance(failure, type) else type(failure)),
        new_bundle(path, overwrite=True) as writer,
    ):
        writer.write(GRAPH, b"half")
        raise failure
    assert [p.name for p in path.parent.iterdir()] == ["a.bundle"]
    Bundle.open(path).verify([GRAPH])


def test_a_full_disk_is_one_clear_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_writer, "_record", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        write(path, overwrite=True, graph=b"other")
    assert Bundle.open(path).file(GRAPH).read_bytes() == b"graph"
    assert [p.name for p in path.parent.iterdir()] == ["a.bundle"]


def test_too_little_space_is_said_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="free some or choose another disk") as error,
        new_bundle(tmp_path / "b.bundle") as writer,
    ):
        writer.require_space(1 << 60)
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_killed_export_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from paligemma_edge.runtime.bundle_writer import new_bundle\n"
        "with new_bundle(sys.argv[1]) as w: w.write('x', b'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bundle")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "a.bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bundle"]


def test_amending_adds_a_file_and_keeps_the_rest(path: Path) -> None:
    bundle = amend_bundle(Bundle.open(path), {"parity/cpu-fp32.json": b"{}"}, lambda m: m)
    again = Bundle.open(path)
    assert again.manifest == bundle.manifest
    again.verify(again.manifest.files)
    assert again.file("parity/cpu-fp32.json").read_bytes() == b"{}"
    assert not list(path.rglob("*.partial-*"))


def test_a_file_that_is_not_listed_is_no_part_of_the_bundle(path: Path) -> None:
    (path / "stranger").write_bytes(b"x")
    with pytest.raises(BundleError, match="lists no file"):
        Bundle.open(path).file("stranger")
