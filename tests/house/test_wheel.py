"""What is installed from the wheel is the tree: no file is left out, and none is added."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from tests.house.imports import ROOT

# Folders of the tree and their names in the wheel; the first that holds a file names it.
NAMES = {
    "package": "paligemma_edge",
    "export/optimum_register": "optimum/commands/register",
    "export": "paligemma_edge/export",
    "quantize": "paligemma_edge/quantize",
    "runtime": "paligemma_edge/runtime",
    "samples/images": "paligemma_edge/sample_images",
}


def test_the_wheel_is_the_tree() -> None:
    distribution = installed_distribution()
    if is_editable(distribution):
        pytest.skip("an editable install reads the tree itself; `make test` installs the wheel")
    installed = {
        path.as_posix()
        for path in distribution.files or ()
        if path.suffix != ".pyc" and ".." not in path.parts  # nor the command, in bin/
    }
    prefix = f"paligemma_edge-{distribution.version}.dist-info/"
    assert {path for path in installed if not path.startswith(prefix)} == tree()


def installed_distribution() -> metadata.Distribution:
    """The one that pip installed: a build leaves an egg-info in the tree, which has no RECORD."""
    everywhere = metadata.distributions(name="paligemma-edge")
    return next(one for one in everywhere if one.read_text("RECORD"))


def is_editable(distribution: metadata.Distribution) -> bool:
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    return bool(source.get("dir_info", {}).get("editable"))


def tree() -> set[str]:
    """Every file of the folders that are shipped, by its name in the wheel."""
    return {
        wheel_name(path.relative_to(ROOT))
        for folder in NAMES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_name(path: Path) -> str:
    folder = next(folder for folder in NAMES if path.is_relative_to(folder))
    return f"{NAMES[folder]}/{path.relative_to(folder).as_posix()}"
