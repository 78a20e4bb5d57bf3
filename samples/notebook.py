"""Runs the quickstart notebook and stores it with its outputs.

python -m samples.notebook    # after `make demo`, which makes its bundle
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def main() -> None:
    nbformat.write(execute(NOTEBOOK.parent, os.environ), NOTEBOOK)


def execute(folder: Path, environment: Mapping[str, str]) -> Any:  # noqa: ANN401 - untyped nodes
    """The notebook with the outputs that its cells have in a folder; the first error ends it.

    No times are kept, and what a cell prints is one output, so that a run changes the file only
    where answers changed.
    """
    client = NotebookClient(
        nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT),
        coalesce_streams=True,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
        timeout=120,  # seconds of a cell
    )
    return client.execute(env=dict(environment))


if __name__ == "__main__":
    main()
