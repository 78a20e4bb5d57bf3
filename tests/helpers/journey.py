"""The command line in a process of its own, as a user takes it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HEAVY = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "rich"),
    *("llguidance", "av", "supervision", "pycocotools", "peft", "shtab"),
)

# What the extra `verify` brings beside those of `export`.
VERIFY = ("torch", "transformers")

_PROGRESS = re.compile(r"^paligemma-edge: (.+?)(?:, [0-9]+% done)?$")


def without(*packages: str) -> str:
    """A program that runs the command where these packages cannot be imported.

    With one argument alone that is a JSON list it runs several, until one fails.
    """
    return f"""
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from paligemma_edge.runtime.cli.main import main
several = len(sys.argv) == 2 and sys.argv[1].startswith("[")
codes = map(main, json.loads(sys.argv[1]) if several else [sys.argv[1:]])
sys.exit(next(filter(None, codes), 0))
"""


LIGHT = without(*HEAVY)


def call(
    *arguments: str | Path,
    light: bool = False,
    program: str | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end: as it is, by a program, or where there are no extras."""
    program = LIGHT if light else program
    command = ["-m", "paligemma_edge"] if program is None else ["-c", program]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        input=stdin,
        text=True,
        check=False,
        timeout=300,
    )


def refused(
    *arguments: str | Path, light: bool = False, program: str | None = None, code: int = 1
) -> str:
    """The one line that a refused command prints, besides which variant it had opened."""
    done = call(*arguments, light=light, program=program)
    assert done.returncode == code, done
    *notes, line = done.stderr.splitlines()
    assert all(": variant " in note for note in notes), notes
    assert line.startswith("paligemma-edge: ")
    return line


def stages_of(lines: Sequence[str]) -> list[str]:
    """The stages in lines of progress, in order, however far a slow machine says that each is."""
    return list(dict.fromkeys(_PROGRESS.sub(r"\1", line) for line in lines))
