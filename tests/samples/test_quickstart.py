"""The quickstart notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import os
import sys
from typing import Any

import nbformat
import pytest

from samples.notebook import NOTEBOOK, execute
from tests.helpers.docs_folder import build_folder
from tests.helpers.markdown import ROOT
from tests.helpers.shared import build_once


def code_cells(notebook: Any) -> list[Any]:  # noqa: ANN401 - nbformat's nodes have no types
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[set[str]]:  # noqa: ANN401
    """What each output of a cell is: the name of a stream, or the media types of data."""
    return [{output["name"]} if "name" in output else {*output["data"]} for output in cell.outputs]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    """The notebook, run where `make demo` was: a bundle in build/, images beside the notebook."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "build").mkdir()
    bundle = build_once(tmp_path_factory, "docs", build_folder) / "mix.bundle"
    (folder / "build" / "shapes.bundle").symlink_to(bundle)
    (folder / "samples").mkdir()
    (folder / "samples" / "images").symlink_to(ROOT / "samples" / "images")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return execute(folder / "samples", {**os.environ, "PYTHONPATH": path})


def test_the_notebook_runs(executed: Any) -> None:  # noqa: ANN401
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    shown = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert shown.count("<img") >= 3
    assert not [output for output in outputs if output.output_type == "error"]


def test_its_stored_outputs_are_those_of_today(executed: Any) -> None:  # noqa: ANN401
    """As far as kinds go: figures differ a little on another CPU, and pandas adds a table."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in zip(code_cells(stored), code_cells(executed), strict=True):
        pairs = zip(kinds(old), kinds(new), strict=True)
        assert all(before <= now for before, now in pairs), old.source
