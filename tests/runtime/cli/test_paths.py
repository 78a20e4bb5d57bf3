"""Without a working directory: one line where a path is seen from it, and all else works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paligemma_edge.runtime.cli.commands import command_parser
from paligemma_edge.runtime.cli.paths import has_relative_paths, working_directory
from paligemma_edge.runtime.errors import BundleError

GONE = "import os, sys\nos.rmdir(os.getcwd())\n"
GONE += "from paligemma_edge.runtime.cli.start import main\nsys.exit(main())\n"
TOLD = "paligemma-edge: the working directory is no longer there; change to another one\n"

# Of each command one that is given a path beyond a folder that is gone, which Linux still finds.
RELATIVE = (
    "inspect ../mix.bundle",
    "check ../mix.bundle",
    "run ../mix.bundle caption {image}",
    "run {bundle} caption x.png",
    "run {bundle} caption {image} --out x.csv",
    "run {bundle} caption {image} --draw x.png",
    "bench ../mix.bundle",
    "prepack ../mix.bundle",
    "export {checkpoint} ../new.bundle",
    "export x {bundle}.new",
    "quantize ../mix.bundle cpu-int8",
    "quantize {bundle} mine.toml",
    "adapter {bundle} x --name x",
    "verify ../mix.bundle {checkpoint}",
    "verify {bundle} {checkpoint}",  # PyTorch needs one by itself
)


def call(arguments: list[str], above: Path) -> tuple[int, str, str]:
    """A command in a folder that is gone: its exit code, output and messages."""
    folder = above / "gone"
    folder.mkdir()
    command = [sys.executable, "-P", "-c", GONE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("line", RELATIVE)
def test_a_working_directory_that_is_gone_is_told_in_one_line(
    line: str, shapes_bundle: Path, shapes_checkpoint: Path, shapes_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "mix.bundle").symlink_to(shapes_bundle)
    places = {
        "bundle": shapes_bundle,
        "checkpoint": shapes_checkpoint,
        "image": shapes_images / "00.png",
    }
    arguments = [part.format(**places) for part in line.split()]
    assert call(arguments, tmp_path) == (1, "", TOLD)
    assert [path.name for path in tmp_path.iterdir()] == ["mix.bundle"]


def test_absolute_paths_need_no_working_directory(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path
) -> None:
    image, records = str(shapes_images / "00.png"), tmp_path / "records.jsonl"
    run = ["run", str(shapes_bundle), "caption en", image, "--out", str(records), "--quiet"]
    assert call(run, tmp_path) == (0, f"{records}: 1 answer\n", "")
    assert image in records.read_text()


def test_a_wrong_path_that_is_absolute_is_told_alone(tmp_path: Path) -> None:
    code, output, messages = call(["inspect", str(tmp_path / "none.bundle")], tmp_path)
    assert (code, output) == (1, "")
    assert messages.count("\n") == 1
    assert "none.bundle does not exist" in messages


def test_a_working_directory_that_goes_meanwhile_is_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError), working_directory(needed=True):
        raise BundleError("damaged")
    with pytest.raises(FileNotFoundError), working_directory(needed=True):
        folder.rmdir()
        raise BundleError("it leads to this")
    with pytest.raises(BundleError), working_directory(needed=False):
        raise BundleError("about an absolute path")


@pytest.mark.parametrize(
    ("line", "relative"),
    [
        ("run /a caption /b.png", False),
        ("run /a caption - camera:0", False),
        ("run /a caption /b.png c.png", True),
        ("run /a --questions q.jsonl --images /c", True),
        ("quantize /a cpu-int8 cpu-int4", False),
        ("quantize /a cpu-int8 mine.toml", True),
        ("export /a /b --no-mask-decoder --adapter /c", False),
        ("export /a /b --adapter /c --adapter d", True),
        ("export /a /b --calibrate d", True),
        ("completion bash", False),
    ],
)
def test_which_arguments_are_seen_from_the_working_directory(line: str, *, relative: bool) -> None:
    name, *arguments = line.split()
    parser = command_parser(name)
    assert has_relative_paths(parser, parser.parse(arguments)) is relative
