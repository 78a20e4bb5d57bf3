"""Links in bundles: those of the Hub's cache and of copies that share files, and no others.

What the cache looks like is huggingface_hub's: `snapshots/COMMIT/FILE -> ../../blobs/DIGEST`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle, remove_folder
from paligemma_edge.runtime.bundle.writer import amend_bundle, new_bundle
from paligemma_edge.runtime.errors import BundleError, OutputError
from tests.helpers.fake_hub import keep
from tests.helpers.small_bundle import GRAPH, REPORT, WEIGHTS, manifest, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def _verified(path: Path) -> Bundle:
    bundle = Bundle.open(path)
    bundle.verify(bundle.manifest.files)
    return bundle


def _link(link: Path, target: str | Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize("inner", ["", "mix", "bundles/mix"])
def test_a_bundle_in_the_cache_of_the_hub(path: Path, tmp_path: Path, inner: str) -> None:
    kept = keep(tmp_path / "hub", "me/mix", path, inner=inner)
    assert (kept / "manifest.json").is_symlink()
    assert _verified(kept).file(GRAPH).read_bytes() == b"graph"


def test_a_cache_that_is_reached_through_links(path: Path, tmp_path: Path) -> None:
    """As a cache on another disk is: ~/.cache/huggingface is a link."""
    kept = keep(tmp_path / "disk" / "hub", "me/mix", path)
    (tmp_path / "home").symlink_to("disk")
    (tmp_path / "mix").symlink_to(kept)
    _verified(tmp_path / "home" / kept.relative_to(tmp_path / "disk"))
    _verified(tmp_path / "mix")


def test_a_bundle_whose_folder_is_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "relative").symlink_to("a.bundle")
    (tmp_path / "absolute").symlink_to(path)
    (tmp_path / "of a link").symlink_to("relative")
    for link in ("relative", "absolute", "of a link"):
        _verified(tmp_path / link)


def test_hard_links_are_files(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "twin", copy_function=os.link)
    assert (path / GRAPH).stat().st_nlink == 2
    _verified(path)
    _verified(tmp_path / "twin")


def test_a_link_within_the_bundle(path: Path) -> None:
    (path / "store").mkdir()
    (path / GRAPH).rename(path / "store" / "1")
    _link(path / GRAPH, "../store/1")
    _link(path / GRAPH, "./../cpu-fp32/.././store/1")
    _verified(path)
    (path / "manifest.json").rename(path / "store" / "2")
    _link(path / "manifest.json", "store/2")
    _verified(path)


def _absolute(path: Path) -> str:
    (path / GRAPH).rename(path / "inside")
    _link(path / GRAPH, path / "inside")
    return f"is a link to '{path}/inside', an absolute path"


def _outside(path: Path) -> str:
    (path / GRAPH).rename(path.parent / "outside")
    _link(path / GRAPH, "../../outside")
    return "is a link to '../../outside', which leads out of the folder"


def _sibling_with_its_name(path: Path) -> str:
    """A folder whose name begins as the bundle's."""
    shutil.copytree(path, path.with_name("a.bundle.old"))
    _link(path / GRAPH, "../../a.bundle.old/cpu-fp32/decoder.onnx")
    return "which leads out of the folder"


def _chain(path: Path) -> str:
    (path / GRAPH).rename(path / "one")
    _link(path / "two", "one")
    _link(path / GRAPH, "../two")
    return "is a link to '../two', which is another link or behind one"


def _chain_out(path: Path) -> str:
    (path / GRAPH).rename(path.parent / "outside")
    _link(path / "two", "../outside")
    _link(path / GRAPH, "../two")
    return "which is another link or behind one"


def _behind_a_folder_link(path: Path) -> str:
    shutil.copytree(path / "cpu-fp32", path.parent / "outside")
    _link(path / "door", "../outside")
    _link(path / GRAPH, "../door/decoder.onnx")
    return "which is another link or behind one"


def _back_through_a_folder_link(path: Path) -> str:
    """`door/..` is the parent of what door leads to, and not the bundle."""
    (path.parent / "outside").mkdir()
    (path / GRAPH).rename(path / "file")
    shutil.copy(path / "file", path.parent / "file")
    _link(path / "door", "../outside")
    _link(path / GRAPH, "../door/../file")
    return "which is another link or behind one"


def _dangling(path: Path) -> str:
    _link(path / GRAPH, "../nothing")
    return "is a link to '../nothing', where nothing is"


def _below_a_file(path: Path) -> str:
    _link(path / GRAPH, "../manifest.json/x")
    return "where nothing is"


def _loop(path: Path) -> str:
    _link(path / GRAPH, "decoder.onnx")
    return "is a link to 'decoder.onnx', which is another link"


def _long_loop(path: Path) -> str:
    _link(path / "one", "two")
    _link(path / "two", "one")
    _link(path / GRAPH, "../one")
    return "which is another link"


def _to_a_pipe(path: Path) -> str:
    os.mkfifo(path / "pipe")
    _link(path / GRAPH, "../pipe")
    return "which is a named pipe"


def _to_a_folder(path: Path) -> str:
    _link(path / GRAPH, "../cpu-fp32")
    return "which is a folder"


def _to_a_device(path: Path) -> str:
    _link(path / GRAPH, "/dev/zero")
    return "is a link to '/dev/zero', an absolute path"


def _to_a_device_by_dots(path: Path) -> str:
    _link(path / GRAPH, "../" * 40 + "dev/zero")
    return "which leads out of the folder"


def _folder_link(path: Path) -> str:
    (path / "cpu-fp32").rename(path / "elsewhere")
    _link(path / "cpu-fp32", "elsewhere")
    return "cpu-fp32 is a link to 'elsewhere', and no folder in a bundle may be one"


def _terminal(path: Path) -> str:
    _link(path / GRAPH, "../\x1b[2Jx\ny\udcff" + "z" * 200)
    return r"is a link to '../\x1b[2Jx\ny\udcff"


def _manifest_outside(path: Path) -> str:
    (path / "manifest.json").rename(path.parent / "m")
    _link(path / "manifest.json", "../m")
    return "manifest.json is a link to '../m', which leads out"


def _manifest_nowhere(path: Path) -> str:
    _link(path / "manifest.json", "m")
    return "manifest.json is a link to 'm', where nothing is"


def _manifest_pipe(path: Path) -> str:
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    return "manifest.json is a named pipe, not a regular file"


REFUSED = [
    *(_absolute, _outside, _sibling_with_its_name, _chain, _chain_out, _behind_a_folder_link),
    *(_back_through_a_folder_link, _dangling, _below_a_file, _loop, _long_loop, _to_a_pipe),
    *(_to_a_folder, _to_a_device, _to_a_device_by_dots, _folder_link, _terminal),
    *(_manifest_outside, _manifest_nowhere, _manifest_pipe),
]


@pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.__name__)
def test_a_link_that_leads_elsewhere_is_named(path: Path, harm: Callable[[Path], str]) -> None:
    message = harm(path)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def _other_repository(store: Path) -> str:
    return "../../../models--me--other/blobs/0"


def _snapshot_of_the_repository(store: Path) -> str:
    """A file there is itself a link."""
    shutil.copytree(store / "snapshots" / ("0" * 40), store / "snapshots" / "1", symlinks=True)
    return "../../1/cpu-fp32/decoder.onnx"


def _top_of_the_cache(store: Path) -> str:
    (store.parent / "version.txt").write_bytes(b"graph")
    return "../../../../version.txt"


def _blobs_that_are_a_link(store: Path) -> str:
    (store / "blobs").rename(store.parent / "blobs")
    (store / "blobs").symlink_to("../blobs")
    return str((store / "snapshots" / ("0" * 40) / GRAPH).readlink())


@pytest.mark.parametrize(
    "lead",
    [
        *(_other_repository, _snapshot_of_the_repository, _top_of_the_cache),
        _blobs_that_are_a_link,
    ],
    ids=lambda lead: lead.__name__,
)
def test_a_link_out_of_its_repository_in_the_cache(
    path: Path, tmp_path: Path, lead: Callable[[Path], str]
) -> None:
    kept = keep(tmp_path / "hub", "me/mix", path)
    keep(tmp_path / "hub", "me/other", path)
    _link(kept / GRAPH, lead(kept.parents[1]))
    with pytest.raises(BundleError, match="is a link to"):
        Bundle.open(kept)


def test_a_folder_of_snapshots_that_is_no_cache(path: Path, tmp_path: Path) -> None:
    """Without blobs beside it, links may not leave the bundle."""
    kept = keep(tmp_path / "hub", "me/mix", path)
    store = kept.parents[1]
    (store / "blobs").rename(store / "files")
    for link in [kept / "manifest.json", *kept.rglob("*")]:
        if link.is_symlink():
            _link(link, str(link.readlink()).replace("/blobs/", "/files/"))
    with pytest.raises(BundleError, match="leads out of the folder"):
        Bundle.open(kept)


def test_a_blob_that_was_deleted(path: Path, tmp_path: Path) -> None:
    kept = keep(tmp_path / "hub", "me/mix", path)
    (kept / WEIGHTS).resolve().unlink()
    with pytest.raises(
        BundleError, match=r"onnx.data is a link to .*, where nothing is; fetch"
    ) as told:
        Bundle.open(kept)
    assert str(told.value).endswith("of its folder, or run `hf download me/mix`")


def test_a_file_within_the_bundle_that_was_deleted(path: Path) -> None:
    _link(path / GRAPH, "../nothing")
    with pytest.raises(BundleError, match="where nothing is; copy or export the bundle again"):
        Bundle.open(path)


@pytest.mark.parametrize("inner", ["", "mix"])
def test_a_folder_of_the_cache_around_a_bundle_names_the_bundle(
    path: Path, tmp_path: Path, inner: str
) -> None:
    """The cache as huggingface_hub lays it."""
    kept = keep(tmp_path / "hub", "me/mix", path, inner=inner)
    repository = tmp_path / "hub" / "models--me--mix"
    for folder in (repository, repository / "snapshots"):
        with pytest.raises(BundleError, match="so it is not a bundle itself; give the") as caught:
            Bundle.open(folder)
        named = str(caught.value).rpartition("in it: ")[2]
        assert Bundle.open(folder / named).path == kept


def test_folders_around_very_many_bundles_name_some(path: Path, tmp_path: Path) -> None:
    for number in range(9):
        shutil.copytree(path, tmp_path / "all" / str(number))
    with pytest.raises(BundleError, match=r"give the folder in it: 0, 1, 2, 6 more$"):
        Bundle.open(tmp_path / "all")


def test_a_changed_blob_is_found_by_its_digest(path: Path, tmp_path: Path) -> None:
    kept = keep(tmp_path / "hub", "me/mix", path)
    (kept / GRAPH).resolve().write_bytes(b"grapi")
    with pytest.raises(BundleError, match="differs from its sha256"):
        _verified(kept)


def test_a_link_to_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "mix").symlink_to("nowhere")
    with pytest.raises(BundleError, match="mix is a link to 'nowhere', where nothing is"):
        Bundle.open(tmp_path / "mix")


def test_a_link_is_not_overwritten_by_a_bundle(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mix").symlink_to("a.bundle")
    with (
        pytest.raises(OutputError, match=r"mix is a link to 'a\.bundle' and is kept"),
        new_bundle(tmp_path / "mix", overwrite=True),
    ):
        pass


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(params=["cache", "hard links", "links within"])
def shared(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle with a report, and the folder whose files it shares."""
    amend_bundle(Bundle.open(path), {REPORT: b"{}"}, lambda m: m)
    if request.param == "cache":
        kept = keep(tmp_path / "hub", "me/mix", path)
        return kept, kept.parents[1] / "blobs"
    if request.param == "hard links":
        shutil.copytree(path, tmp_path / "twin", copy_function=os.link)
        return path, tmp_path / "twin"
    (path / "store").mkdir()
    for number, name in enumerate([GRAPH, WEIGHTS, REPORT, "manifest.json"]):
        (path / name).rename(path / "store" / str(number))
        _link(path / name, os.path.relpath(path / "store" / str(number), (path / name).parent))
    return path, path / "store"


def test_what_is_shared_is_never_written(shared: tuple[Path, Path]) -> None:
    path, twin = shared
    before = _contents(twin)
    amend_bundle(Bundle.open(path), {REPORT: b"[]"}, lambda m: m)
    for overwrite in (False, True):
        with extend_bundle(Bundle.open(path), "cpu-int8", overwrite=overwrite) as writer:
            writer.write("cpu-int8/decoder.onnx", b"other")
            writer.finish(lambda m: m, extra={REPORT: b"[1]"})
    with extend_bundle(Bundle.open(path), "cpu-fp32", overwrite=True) as writer:
        writer.write(GRAPH, b"new graph")
        writer.write(WEIGHTS, b"new weights")
        writer.finish(lambda m: manifest())
    remove_folder(Bundle.open(path), "cpu-int8")
    assert _contents(twin) == before
    bundle = _verified(path)
    assert bundle.file(GRAPH).read_bytes() == b"new graph"
    assert not (path / "cpu-int8").exists()
    assert not bundle.file(GRAPH).is_symlink()
    assert not (path / "manifest.json").is_symlink()


def test_a_failure_restores_what_was_shared(shared: tuple[Path, Path]) -> None:
    path, twin = shared
    before = _contents(twin)

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        amend_bundle(Bundle.open(path), {REPORT: b"[]"}, fail)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), extend_bundle(Bundle.open(path), "cpu-int8") as writer:
        writer.write("cpu-int8/decoder.onnx", b"other")
        writer.finish(fail)  # type: ignore[arg-type]
    assert _contents(twin) == before
    assert _verified(path).file(REPORT).read_bytes() == b"{}"
