"""One module imports ONNX Runtime, with its telemetry off; nothing else of the repository does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.imports import FOLDERS, ROOT

GUARDED = ROOT / "runtime/device/ort.py"
PLACES = (*FOLDERS, "samples", "tests", "docs")
IMPORT = re.compile(r"\b(?:import|from) +onnxruntime\b")
IMPORTERS = ("import_module", "__import__", "importorskip", "find_spec", "run_module")


def module_names(node: ast.AST) -> Iterator[str]:
    """The modules that a statement imports, or that a call imports by name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTERS:
        yield from (str(first.value) for first in node.args[:1] if isinstance(first, ast.Constant))


def importing_lines(path: Path) -> Iterator[str]:
    """Where a file imports ONNX Runtime: code, or a script, notebook or page that holds code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if any(name.split(".")[0] == "onnxruntime" for name in module_names(node)):
                yield f"{path}: {ast.unparse(node)}"
    elif found := IMPORT.search(text):
        yield f"{path}: {found[0]}"


def files() -> Iterator[Path]:
    kinds = ("*.py", "*.sh", "*.ipynb", "*.md", "*.yml", "Makefile")
    for place in PLACES:
        yield from (path for kind in kinds for path in (ROOT / place).rglob(kind))
    yield from (path for kind in kinds for path in ROOT.glob(kind))


def test_one_module_alone_imports_onnxruntime() -> None:
    lines = {path: list(importing_lines(path)) for path in files()}
    assert [line for path, found in lines.items() if path != GUARDED for line in found] == []
    assert lines[GUARDED]


def test_it_is_turned_off_before_the_import() -> None:
    body = ast.parse(GUARDED.read_text(encoding="utf-8")).body
    steps = [ast.unparse(node) for node in body]
    off = steps.index("os.environ['ORT_DISABLE_TELEMETRY'] = '1'")
    assert off < next(row for row, step in enumerate(steps) if "import onnxruntime" in step)


@pytest.mark.parametrize(
    "line",
    [
        "import onnxruntime",
        "import os, onnxruntime as ort",
        "def f():\n    from onnxruntime.capi import x",
        "from onnxruntime import OrtValue",
        "import_module('onnxruntime')",
        "importlib.import_module('onnxruntime.capi')",
        "pytest.importorskip('onnxruntime')",
    ],
)
def test_each_way_to_import_is_seen(line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(line, encoding="utf-8")
    assert list(importing_lines(path))
