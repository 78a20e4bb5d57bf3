"""Weights that ONNX Runtime does not read through their links, mapped for it.

It reads the weights of a graph only below the graph's folder or, where the graph is a link, below
the folder that this leads to: the rule of its `ValidateExternalDataPath`, which resolves links.
In the Hugging Face Hub's cache both lie in one folder, and it reads them itself. Elsewhere it is
given them in memory, of which it copies what it keeps. Given one file of a graph so, it opens none
of the others, so it is given all that the graph names.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from paligemma_edge.runtime.device.ort import ort

_WEIGHTS = "*.onnx.data"  # as `export` and `quantize` name them


@contextlib.contextmanager
def linked_weights(
    options: ort.SessionOptions, graph: Path, folder: Path | None = None
) -> Iterator[None]:
    """Add the weights to the options; a session is opened with them inside of the block.

    `folder` is that of the weights, where it is not the graph's own.
    """
    with contextlib.ExitStack() as stack:
        files = _out_of_reach(graph, folder) and _to_map(graph, folder)
        maps = [stack.enter_context(_mapped(file)) for file in files]
        if maps:
            options.add_external_initializers_from_files_in_memory(
                [file.name for file in files], maps, [len(mapped) for mapped in maps]
            )
        yield


def _to_map(graph: Path, folder: Path | None) -> list[Path]:
    """The weights that a graph names, if one of them is out of reach."""
    content, linked = graph.read_bytes(), _out_of_reach(graph, folder)
    files = [file for file in _weights(graph, folder) if file.name.encode() in content]
    return files if set(files) & set(linked) else []


def _out_of_reach(graph: Path, folder: Path | None) -> list[Path]:
    """Linked weights that are not below a folder that ONNX Runtime reads from."""
    reached = {os.path.realpath(folder or graph.parent)}
    if folder is None and graph.is_symlink():
        reached.add(str(Path(os.path.realpath(graph)).parent))
    files = _weights(graph, folder)
    return [file for file in files if file.is_symlink() and not _is_below(reached, file)]


def _weights(graph: Path, folder: Path | None) -> list[Path]:
    """What a graph may read; an empty file cannot be mapped, and nothing is read from it."""
    files = sorted((folder or graph.parent).glob(_WEIGHTS))
    return [file for file in files if file.stat().st_size]


def _is_below(folders: set[str], file: Path) -> bool:
    return any(Path(os.path.realpath(file)).is_relative_to(folder) for folder in folders)


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        yield whole
