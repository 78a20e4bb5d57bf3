"""What a program imports: the public names, quickly, typed, and the command."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys

import pytest

import paligemma_edge
from tests.house.imports import ROOT


@pytest.mark.parametrize("name", paligemma_edge.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(paligemma_edge, name) is not None
    assert name in dir(paligemma_edge)


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = paligemma_edge.Pipeline


def test_the_errors_are_all_of_the_tree() -> None:
    from paligemma_edge.runtime import errors

    tree = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert tree < set(paligemma_edge.__all__)


def test_the_version_is_that_of_what_is_installed() -> None:
    assert paligemma_edge.__version__ == importlib.metadata.version("paligemma-edge")


def test_the_import_itself_loads_nothing_else() -> None:
    code = (
        "import sys, paligemma_edge\n"
        "heavy = {'numpy', 'onnxruntime', 'PIL', 'sentencepiece', 'paligemma_edge.runtime'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-m", "paligemma_edge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"paligemma-edge {paligemma_edge.__version__}"


def test_the_program_that_mypy_reads_uses_every_public_name() -> None:
    """`make lint` runs mypy --strict over it; an error that mypy misses is an unused `ignore`."""
    assert (ROOT / "package/py.typed").exists()
    tree = ast.parse((ROOT / "tests/package/program.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    doors = {node.module for node in imports} - {"__future__", "collections.abc", "typing"}
    assert doors == {"paligemma_edge"}
    names = {name.name for node in imports if node.module in doors for name in node.names}
    assert names == set(paligemma_edge.__all__)
