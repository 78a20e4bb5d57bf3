"""`optimum-cli export paligemma`, in a process of its own, where optimum is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

try:
    importlib.metadata.version("optimum")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("optimum is not installed (extra `optimum`)", allow_module_level=True)


def optimum(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimum.commands.optimum_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_options_are_those_of_export() -> None:
    shown = optimum("export", "paligemma", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: optimum-cli export paligemma " in shown.stdout
    assert "\n  optimum-cli export paligemma paligemma-3b-mix-224 mix.bundle" in shown.stdout
    for option in ("--mask-decoder", "--adapter", "--variant", "--from-cache"):
        assert option in shown.stdout
    assert "    paligemma " in optimum("export", "--help").stdout


def test_the_bundle_is_that_of_export(
    shapes_checkpoint: Path, shapes_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "optimum.bundle"
    masks = ("--mask-decoder", shapes_checkpoint / "vae-oid.npz")
    done = optimum("export", "paligemma", shapes_checkpoint, bundle, *masks)
    assert done.returncode == 0, done.stderr
    assert f"{bundle}: cpu-fp32, " in done.stdout
    assert contents(bundle) == contents(shapes_bundle)


def test_an_error_is_a_line_and_a_code(tmp_path: Path) -> None:
    done = optimum("export", "paligemma", tmp_path / "missing", tmp_path / "x.bundle")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("paligemma-edge: ")
    assert "missing is not a directory" in line


def test_the_namespace_of_optimum_has_no_init() -> None:
    """Another distribution's files are there too: an `__init__` would hide them."""
    spec = importlib.util.find_spec("optimum.commands.register")
    assert spec is not None
    assert spec.origin is None
