"""A folder is added to a bundle whole or not at all, whatever stops the writing."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge.runtime.bundle import staging
from paligemma_edge.runtime.bundle.bundle import MANIFEST, Bundle
from paligemma_edge.runtime.bundle.folder_writer import FolderWriter, extend_bundle, remove_folder
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.errors import BundleError, OutputError
from paligemma_edge.runtime.manifest import Manifest, Prepacked, Variant
from paligemma_edge.runtime.system import disk
from tests.helpers.killed import at_each_step
from tests.helpers.small_bundle import GRAPH, REPORT, WEIGHTS, write

FOLDER = "cpu-int4"
SMALL = "cpu-int4/decoder.onnx"
EXTRA = "fidelity/cpu-int4.json"
PREPACKED = "prepacked/cpu-int4/decoder.onnx"


def variant(name: str) -> Callable[[Manifest], Manifest]:
    """A change that adds a variant of one graph."""

    def change(manifest: Manifest) -> Manifest:
        graph = f"{name}/decoder.onnx"
        small = Variant(
            device="cpu",
            recipe=name.removeprefix("cpu-"),
            graphs={"decoder": graph},
            weight_dtype="int4",
            compute_dtype="float32",
            memory_bytes=1,
            files=(graph,),
        )
        return dataclasses.replace(manifest, variants={**manifest.variants, name: small})

    return change


def prepack(manifest: Manifest) -> Manifest:
    prepacked = Prepacked(device="here", graphs={"decoder": PREPACKED}, files=(PREPACKED,))
    return dataclasses.replace(manifest, prepacked={FOLDER: prepacked})


def extend(path: Path, data: bytes = b"small", *, overwrite: bool = False) -> Manifest:
    with extend_bundle(Bundle.open(path), FOLDER, overwrite=overwrite) as writer:
        writer.write(SMALL, data)
        return writer.finish(variant(FOLDER), extra={EXTRA: data})


def extend_prepacked(path: Path) -> Manifest:
    with extend_bundle(Bundle.open(path), "prepacked/cpu-int4", overwrite=True) as writer:
        writer.write(PREPACKED, b"prepacked")
        return writer.finish(prepack)


def contents(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def check_whole(path: Path) -> Bundle:
    bundle = Bundle.open(path)
    bundle.verify(bundle.manifest.files)
    assert not list(path.glob(".*"))
    return bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def test_a_folder_is_added_and_the_rest_is_kept(path: Path) -> None:
    before = contents(path)
    manifest = extend(path)
    bundle = check_whole(path)
    assert bundle.manifest == manifest
    assert list(manifest.variants) == ["cpu-fp32", FOLDER]
    assert contents(path) == {
        **before, SMALL: b"small", EXTRA: b"small", MANIFEST: staging.to_bytes(manifest)
    }  # fmt: skip


def test_the_bundle_is_read_while_it_is_extended(path: Path) -> None:
    with extend_bundle(Bundle.open(path), FOLDER) as writer:
        writer.write(SMALL, b"small")
        assert writer.files() == [SMALL]
        Bundle.open(path).verify([GRAPH, WEIGHTS])
        assert amend_bundle(Bundle.open(path), {REPORT: b"{}"}, lambda m: m).file(REPORT)
        assert writer.files() == [SMALL]  # who amends has not tidied it away
        writer.finish(variant(FOLDER))
    assert set(check_whole(path).manifest.files) >= {REPORT, SMALL}


def test_a_folder_that_is_there_is_kept(path: Path) -> None:
    extend(path)
    before = contents(path)
    with pytest.raises(OutputError, match="exists and is kept; give --overwrite") as error:
        extend(path, b"other")
    assert error.value.errno == errno.EEXIST
    assert contents(path) == before


def test_a_folder_that_came_meanwhile_is_kept(path: Path) -> None:
    with (
        pytest.raises(OutputError, match="exists and is kept"),
        extend_bundle(Bundle.open(path), FOLDER) as writer,
    ):
        writer.write(SMALL, b"late")
        extend(path)
        writer.finish(variant(FOLDER))
    assert check_whole(path).file(SMALL).read_bytes() == b"small"


def test_a_folder_is_replaced_when_asked_and_what_was_made_from_it_goes(path: Path) -> None:
    extend(path)
    extend_prepacked(path)
    assert check_whole(path).manifest.prepacked
    with extend_bundle(Bundle.open(path), FOLDER, overwrite=True) as writer:
        writer.write(SMALL, b"other")
        writer.write("cpu-int4/more", b"more")
        writer.finish(variant(FOLDER))
    bundle = check_whole(path)
    assert bundle.file(SMALL).read_bytes() == b"other"
    assert bundle.manifest.prepacked == {}
    assert PREPACKED not in bundle.manifest.files
    assert not (path / "prepacked").exists()


def test_a_folder_that_no_manifest_lists_is_replaced(path: Path) -> None:
    (path / FOLDER).mkdir()
    (path / FOLDER / "stray").write_bytes(b"left by a crash")
    extend(path)
    assert "cpu-int4/stray" not in contents(path)
    check_whole(path)


def test_a_folder_that_others_need_is_not_replaced(path: Path) -> None:
    extend(path)

    def borrow(manifest: Manifest) -> Manifest:
        shared = dataclasses.replace(manifest.variants["cpu-fp32"], files=(GRAPH, WEIGHTS, SMALL))
        return dataclasses.replace(manifest, variants={**manifest.variants, "cpu-fp32": shared})

    amend_bundle(Bundle.open(path), {}, borrow)
    before = contents(path)
    with pytest.raises(OutputError, match=f"the rest of the bundle needs {SMALL}"):
        extend(path, overwrite=True)
    assert contents(path) == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, BundleError("no")])
def test_a_failure_changes_nothing(path: Path, failure: BaseException) -> None:
    before = contents(path)
    with (
        pytest.raises(failure if isinstance(failure, type) else type(failure)),
        extend_bundle(Bundle.open(path), FOLDER) as writer,
    ):
        writer.write(SMALL, b"half")
        raise failure
    assert contents(path) == before
    assert not list(path.glob(".*"))


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    def refuse(_: Manifest) -> Manifest:
        raise BundleError("no")

    extend(path)
    before = contents(path)
    with (
        pytest.raises(BundleError, match="no"),
        extend_bundle(Bundle.open(path), FOLDER, overwrite=True) as writer,
    ):
        writer.write(SMALL, b"other")
        writer.finish(refuse)
    assert contents(path) == before


def test_an_extension_that_is_not_finished_is_a_mistake(path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not finished"),
        extend_bundle(Bundle.open(path), FOLDER) as writer,
    ):
        writer.write(SMALL, b"small")


def extend_again(path: Path) -> None:
    extend(path, b"other", overwrite=True)


def test_an_extension_killed_at_any_step_leaves_a_bundle_that_works(path: Path) -> None:
    extend(path)
    extend_prepacked(path)
    contents = set()
    for left in at_each_step(path, f"{__name__}:extend_again"):
        bundle = Bundle.open(left)
        bundle.verify(bundle.model_files())
        listed = SMALL in bundle.manifest.files
        contents.add(bundle.file(SMALL).read_bytes() if listed else None)
        extend(bundle.path, b"again", overwrite=True)
        assert check_whole(bundle.path).file(SMALL).read_bytes() == b"again"
    assert contents == {b"small", None, b"other"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_of_the_disk_at_any_step_changes_nothing(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend(path)
    before = contents(path)
    steps = 0
    while True:
        with monkeypatch.context() as patch:
            fail_at(steps, number, patch)
            try:
                extend(path, b"other", overwrite=True)
            except OutputError as error:
                assert error.errno == number
                assert "nothing was changed" in str(error)
            else:
                break
        assert contents(path) == before
        check_whole(path)
        steps += 1
    assert steps > 10
    assert check_whole(path).file(SMALL).read_bytes() == b"other"


def fail_at(step: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """Let one call of those that reach the disk fail, before or after its work."""

    def tick() -> None:
        nonlocal step
        step -= 1
        if step == -1:
            raise OSError(number, os.strerror(number))

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            tick()
            result = function(*args, **options)
            tick()
            return result

        return wrapped

    for name in ("sync", "write_synced", "rename_new"):
        patch.setattr(disk, name, wrap(getattr(disk, name)))
    for name in ("replace", "rename"):
        patch.setattr(Path, name, wrap(getattr(Path, name)))


def test_too_little_space_is_said_before_writing(path: Path) -> None:
    before = contents(path)
    with (
        pytest.raises(OutputError, match="free some or choose another disk"),
        extend_bundle(Bundle.open(path), FOLDER) as writer,
    ):
        writer.require_space(1 << 60)
    assert contents(path) == before


def test_extensions_of_different_folders_at_the_same_time_are_both_kept(path: Path) -> None:
    bundle = Bundle.open(path)
    with extend_bundle(bundle, FOLDER) as one, extend_bundle(bundle, "cpu-int8") as other:
        one.write(SMALL, b"4")
        other.write("cpu-int8/decoder.onnx", b"8")
        one.finish(variant(FOLDER))
        other.finish(variant("cpu-int8"))
    changed = check_whole(path).manifest
    assert list(changed.variants) == ["cpu-fp32", FOLDER, "cpu-int8"]
    assert set(changed.files) >= {SMALL, "cpu-int8/decoder.onnx"}


def test_an_extension_made_of_another_model_is_refused(path: Path) -> None:
    with (
        pytest.raises(BundleError, match="was replaced meanwhile"),
        extend_bundle(Bundle.open(path), FOLDER) as writer,
    ):
        writer.write(SMALL, b"small")
        write(path, overwrite=True, graph=b"other")
        writer.finish(variant(FOLDER))
    assert SMALL not in check_whole(path).manifest.files


def test_what_a_folder_was_made_from_must_stay_and_the_rest_may_change(path: Path) -> None:
    extend(path)
    for source, fails in (((GRAPH,), False), ((SMALL,), True)):
        with extend_bundle(Bundle.open(path), "cpu-int8", made_from=source) as writer:
            writer.write("cpu-int8/decoder.onnx", b"8")
            extend(path, b"other" if fails else b"another", overwrite=True)
            if fails:
                with pytest.raises(BundleError, match="was replaced meanwhile"):
                    writer.finish(variant("cpu-int8"))
                (writer.directory / "cpu-int8/decoder.onnx").unlink()
            else:
                writer.finish(variant("cpu-int8"))
        remove_folder(Bundle.open(path), "cpu-int8")


@pytest.mark.parametrize(
    "name", ["golden.json", "cpu-int8/a", "../a", "/a", "cpu-int4/../a", "cpu-int4", ".a/b"]
)
def test_a_name_that_leaves_the_folder_is_refused(path: Path, name: str) -> None:
    before = contents(path)
    with extend_bundle(Bundle.open(path), FOLDER) as writer, pytest.raises(BundleError):
        writer.write(name, b"no")
    assert contents(path) == before


@pytest.mark.parametrize("folder", ["", ".", "..", "../b", "/tmp", ".hidden", "a/../b", "a//b"])
def test_a_folder_that_leaves_the_bundle_is_refused(path: Path, folder: str) -> None:
    with pytest.raises(BundleError, match="plain path"), extend_bundle(Bundle.open(path), folder):
        pass
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.bundle"]


def test_a_folder_behind_a_link_is_refused(path: Path) -> None:
    (path.parent / "outside").mkdir()
    (path / "prepacked").symlink_to(path.parent / "outside")
    with (
        pytest.raises(BundleError, match="no folder in a bundle may be one"),
        extend_bundle(Bundle.open(path), "prepacked/cpu-int4"),
    ):
        pass


def test_what_a_killed_extension_staged_is_removed_by_the_next(path: Path) -> None:
    (path / ".amend-1").mkdir()
    Bundle.open(path)
    extend(path)
    check_whole(path)


def test_a_folder_is_removed_with_what_was_made_from_it(path: Path) -> None:
    before = contents(path)
    extend(path)
    extend_prepacked(path)
    remove_folder(Bundle.open(path), FOLDER)
    assert {**contents(path), MANIFEST: b""} == {**before, MANIFEST: b""}
    assert list(check_whole(path).manifest.variants) == ["cpu-fp32"]


def test_a_report_about_what_was_replaced_is_removed(path: Path) -> None:
    extend(path)
    kept = {REPORT: b"about another", "fidelity/cpu-int4-mine.json": b"about yet another"}
    gone = {"fidelity/cpu-int4.png": b"a plot", "parity/cpu-int4.json": b"{}"}
    amend_bundle(Bundle.open(path), {**kept, **gone}, lambda m: m)
    with extend_bundle(Bundle.open(path), FOLDER, overwrite=True) as writer:
        writer.write(SMALL, b"other")
        writer.finish(variant(FOLDER))
    after = contents(path)
    assert set(after) == {*check_whole(path).manifest.files, MANIFEST}
    assert set(kept) < set(after)
    assert not {EXTRA, *gone} & set(after)


def test_files_that_a_library_wrote_elsewhere_are_found(path: Path) -> None:
    with extend_bundle(Bundle.open(path), FOLDER) as writer:
        assert isinstance(writer, FolderWriter)
        writer.write(SMALL, b"small")
        stray = writer.directory / "stray"
        stray.write_bytes(b"stray")
        with pytest.raises(BundleError, match="is not in cpu-int4"):
            writer.finish(variant(FOLDER))
        stray.unlink()
        writer.finish(variant(FOLDER))
    check_whole(path)
