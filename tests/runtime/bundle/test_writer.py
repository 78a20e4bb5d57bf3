"""Bundles are written whole or not at all, whatever stops the writing."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paligemma_edge.runtime.bundle import staging
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle, new_bundle
from paligemma_edge.runtime.errors import BundleError, OutputError
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.system import disk
from tests.helpers.killed import at_each_step
from tests.helpers.small_bundle import GRAPH, REPORT, WEIGHTS, manifest, write


def amend(path: Path) -> None:
    files = {"parity/cpu-fp32.json": b"a longer report", "golden.json": b"a longer answer"}
    amend_bundle(Bundle.open(path), files, lambda m: m)


def overwrite(path: Path) -> None:
    manifest = Bundle.open(path).manifest
    with new_bundle(path, overwrite=True) as writer:
        for name in manifest.files:
            writer.write(name, b"other")
        writer.finish(manifest)


def overwrite_without_exchange(path: Path) -> None:
    disk._renameat2 = lambda *_: False
    overwrite(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


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

    monkeypatch.setattr(staging, "_record", full)
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
        "import os, sys; from paligemma_edge.runtime.bundle.writer import new_bundle\n"
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


def test_an_amendment_killed_at_any_step_leaves_a_bundle_that_works(path: Path) -> None:
    amend_bundle(Bundle.open(path), {REPORT: b"{}", "golden.json": b"{}"}, lambda m: m)
    bundles = at_each_step(path, f"{__name__}:amend")
    assert len(bundles) > 10
    for place in bundles:
        bundle = Bundle.open(place)
        bundle.verify(bundle.model_files())
        amend_bundle(bundle, {REPORT: b"new", "golden.json": b"new"}, lambda m: m)
        repaired = Bundle.open(place)
        repaired.verify(repaired.manifest.files)
        assert not list(place.glob(".*"))


def test_amendments_of_one_state_do_not_undo_each_other(path: Path) -> None:
    def mark(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, source={**manifest.source, "marked": "yes"})

    early = Bundle.open(path)
    amend_bundle(early, {"parity/one.json": b"1"}, mark)
    amend_bundle(early, {"parity/two.json": b"2"}, lambda m: m)
    bundle = Bundle.open(path)
    assert {"parity/one.json", "parity/two.json"} < set(bundle.manifest.files)
    assert bundle.manifest.source["marked"] == "yes"


def test_amendments_at_the_same_time_are_all_kept(path: Path) -> None:
    code = (
        "import sys; from paligemma_edge.runtime.bundle.bundle import Bundle\n"
        "from paligemma_edge.runtime.bundle.writer import amend_bundle\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "for n in range(20): amend_bundle(bundle, {f'r/{sys.argv[2]}-{n}': b'x'}, lambda m: m)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    assert len([name for name in Bundle.open(path).manifest.files if name.startswith("r/")]) == 40


def test_what_was_found_of_one_model_is_not_written_into_another(path: Path) -> None:
    old = Bundle.open(path)
    write(path, overwrite=True, graph=b"other")
    with pytest.raises(BundleError, match="was replaced meanwhile"):
        amend_bundle(old, {REPORT: b"{}"}, lambda m: m)


def test_an_amendment_stays_in_the_bundle(path: Path) -> None:
    (path.parent / "outside").mkdir()
    (path / "parity").symlink_to(path.parent / "outside")
    with pytest.raises(BundleError, match="no folder in a bundle may be one"):
        amend_bundle(Bundle.open(path), {REPORT: b"{}"}, lambda m: m)
    assert not names(path.parent / "outside")


@pytest.mark.parametrize("action", ["overwrite", "overwrite_without_exchange"])
def test_a_bundle_survives_its_replacement_killed_at_any_step(path: Path, action: str) -> None:
    bundles = at_each_step(path, f"{__name__}:{action}")
    assert len(bundles) > 10
    for place in bundles:
        if action == "overwrite_without_exchange":
            with pytest.raises(OutputError, match="is kept"):  # which puts it back first
                write(place)
        bundle = Bundle.open(place)
        bundle.verify(bundle.manifest.files)
        write(place, overwrite=True)
        assert names(place.parent) == ["a.bundle"]


def test_an_interrupt_between_two_renames_puts_the_bundle_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, moved = Path.rename, []

    def interrupted(source: Path, target: Path) -> Path:
        moved.append(source)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, overwrite=True, graph=b"other")
    assert len(moved) == 3
    assert Bundle.open(path).file(GRAPH).read_bytes() == b"graph"
    assert names(path.parent) == ["a.bundle"]


@pytest.mark.parametrize("offered", [True, False])
def test_renaming_never_replaces(
    path: Path, offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not offered:
        monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    (path.parent / "empty").mkdir()
    with pytest.raises(FileExistsError):
        disk.rename_new(path, path.parent / "empty")
    assert names(path.parent) == ["a.bundle", "empty"]


def test_of_two_exports_to_one_name_the_first_to_finish_is_kept(tmp_path: Path) -> None:
    """Both in one process: in containers, two processes may have the same number."""
    with (
        pytest.raises(OutputError, match="is kept") as error,
        new_bundle(tmp_path / "a.bundle") as late,
    ):
        late.write(GRAPH, b"late")
        write(tmp_path / "a.bundle")
        late.finish(manifest())
    assert error.value.errno == errno.EEXIST
    assert Bundle.open(tmp_path / "a.bundle").file(GRAPH).read_bytes() == b"graph"
    assert names(tmp_path) == ["a.bundle"]


def test_an_export_that_still_runs_elsewhere_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from paligemma_edge.runtime.bundle.writer import new_bundle\n"
        "with new_bundle(sys.argv[1]) as writer:\n"
        "    writer.write('x', b'x'); print('here', flush=True); input()\n"
        "    assert writer.files() == ['x']; print('still', flush=True); raise SystemExit(3)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.bundle")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        write(tmp_path / "a.bundle")
        assert len(names(tmp_path)) == 2
        assert other.communicate("\n")[0] == "still\n"
    assert other.returncode == 3
    assert names(tmp_path) == ["a.bundle"]


def test_what_a_killed_process_of_our_number_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".a.bundle.partial-{os.getpid()}").mkdir()
    (tmp_path / ".b.bundle.partial-1").mkdir()
    write(tmp_path / "a.bundle")
    assert names(tmp_path) == [".b.bundle.partial-1", "a.bundle"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_disk_that_fills_up_under_numpy_is_one_clear_line(small_disk: Path) -> None:
    write(small_disk / "a.bundle")
    with (
        pytest.raises(OutputError, match="No space left on device; nothing was changed") as error,
        new_bundle(small_disk / "a.bundle", overwrite=True) as writer,
    ):
        np.zeros(1 << 20).tofile(writer.path(WEIGHTS))
    assert error.value.errno == errno.ENOSPC
    assert names(small_disk) == ["a.bundle"]
    Bundle.open(small_disk / "a.bundle")


def test_a_full_disk_stops_an_amendment_before_it_changes_anything(small_disk: Path) -> None:
    write(small_disk / "a.bundle")
    bundle = amend_bundle(Bundle.open(small_disk / "a.bundle"), {REPORT: b"{}"}, lambda m: m)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        amend_bundle(bundle, {REPORT: b"[]", "golden.png": b"x" * (1 << 20)}, lambda m: m)
    same = Bundle.open(bundle.path)
    same.verify(same.manifest.files)
    assert same.manifest == bundle.manifest
    assert not list(bundle.path.glob(".*"))


def test_an_error_without_a_number_is_reported_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Input/output error"), new_bundle(tmp_path / "a"):
        raise OSError("4096 requested and 12 written")


def test_an_interrupt_while_tidying_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def interrupted(*args: object, **options: object) -> None:
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), new_bundle(tmp_path / "a.bundle") as writer:
        writer.write(GRAPH, b"half")
        raise KeyboardInterrupt
    assert not names(tmp_path)


def test_folders_that_a_failed_export_made_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "there/new/newer/a.bundle"):
        raise RuntimeError
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["there"]
    write(tmp_path / "there/new/newer/a.bundle")
    Bundle.open(tmp_path / "there/new/newer/a.bundle")


@pytest.mark.parametrize(
    ("size", "text"), [(5e9, "5.0 GB"), (12.34e6, "12.3 MB"), (65e3, "65.0 kB"), (0, "0.0 kB")]
)
def test_sizes_are_given_in_a_unit_that_shows_them(size: float, text: str) -> None:
    assert staging._readable(size) == text
