"""What is left behind in a home, a working directory and a folder for temporary files: nothing.

The environment asks for telemetry (`ORT_DISABLE_TELEMETRY=0`), as another program's user may have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MakeCheckpoint = Callable[..., Path]

PLACES = ("home", "cache", "data", "config", "work", "tmp")
NO_HOME = "/proc/none"  # cannot be made, not even by root
ASK = """
import sys
from paligemma_edge import PaliGemma
with PaliGemma(sys.argv[1]) as model:
    assert model.detect(sys.argv[2], ["star"]).text
"""
COMMANDS = """
import json, sys
from paligemma_edge.runtime.cli.main import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
"""
PLOT = """
from paligemma_edge.quantize.fidelity.matplotlib_folder import without_traces
with without_traces():
    from matplotlib.figure import Figure
    Figure().savefig("/dev/null", format="png")
"""
XDG = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config"}
HOMES: Mapping[str, Mapping[str, str]] = {
    "new": {"HOME": "home"},
    "XDG": {"HOME": "home", **XDG},
    "unset": {},
    "cannot be written": {"HOME": NO_HOME},
    "a device": {"HOME": "/dev/null"},
    "XDG cannot be written": {"HOME": "home", **dict.fromkeys(XDG, NO_HOME)},
}


def run(folder: Path, home: Mapping[str, str], code: str, *arguments: object) -> str:
    """Run a program with this home, absolute or below the folder; what it prints as errors."""
    for place in PLACES:
        (folder / place).mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *map(str, arguments)],
        cwd=folder / "work",
        env={
            **{**kept, "ORT_DISABLE_TELEMETRY": "0", "TMPDIR": str(folder / "tmp")},
            **{name: str(folder / value) for name, value in home.items()},
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def left_behind(folder: Path) -> list[Path]:
    return [path for place in PLACES for path in (folder / place).rglob("*")]


@pytest.fixture(autouse=True)
def _absolute_python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs in another working directory."""
    if paths := os.environ.get("PYTHONPATH"):
        absolute = map(os.path.abspath, paths.split(os.pathsep))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(absolute))


@pytest.mark.parametrize("home", HOMES)
def test_an_answer_leaves_nothing_and_prints_nothing(
    home: str, shapes_bundle: Path, shapes_images: Path, tmp_path: Path
) -> None:
    assert run(tmp_path, HOMES[home], ASK, shapes_bundle, shapes_images / "00.png") == ""
    assert left_behind(tmp_path) == []


def test_the_commands_leave_what_was_asked_for(
    make_checkpoint: MakeCheckpoint, shapes_images: Path, tmp_path: Path
) -> None:
    """To export, to quantize with reports and their plots, and to run with overlays."""
    (out := tmp_path / "out").mkdir()
    entry = {"image": "00.png", "questions": [{"prompt": "detect star"}]}
    (out / "prompts.json").write_text(json.dumps([entry]), encoding="utf-8")
    (out / "00.png").write_bytes((shapes_images / "00.png").read_bytes())
    bundle, image = str(out / "x.bundle"), str(out / "00.png")
    commands = [
        ["export", str(make_checkpoint()), bundle],
        ["quantize", bundle, "cpu-int4", "--calibrate", str(out)],
        ["run", bundle, "detect star", image, "--draw", str(out / "drawn.png")],
    ]
    errors = run(tmp_path, HOMES["new"], COMMANDS, json.dumps(commands))
    assert left_behind(tmp_path) == []
    assert {path.name for path in out.iterdir()} == {
        *("00.png", "prompts.json", "x.bundle", "drawn.png")
    }
    assert (out / "x.bundle/fidelity/cpu-int4.png").is_file()
    assert "\x1b" not in errors
    assert all(line.startswith("paligemma-edge: ") for line in errors.splitlines()), errors


@pytest.mark.parametrize("home", HOMES)
def test_a_plot_leaves_nothing_and_prints_nothing(home: str, tmp_path: Path) -> None:
    """matplotlib lists fonts in the home, and says so where it cannot."""
    assert run(tmp_path, HOMES[home], PLOT) == ""
    assert left_behind(tmp_path) == []


def test_a_home_that_matplotlib_was_used_in_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "settings/matplotlib").mkdir(parents=True)
    home = {"HOME": "home", "XDG_CONFIG_HOME": "settings", "XDG_CACHE_HOME": "settings"}
    run(tmp_path, home, PLOT)
    assert list((tmp_path / "settings/matplotlib").glob("fontlist-*.json"))
