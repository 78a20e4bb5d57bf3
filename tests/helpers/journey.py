"""The command line in a process of its own, as a user takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "rich"),
    *("llguidance", "av", "supervision", "pycocotools", "peft"),
)

# Runs the command where none of the packages of the extras can be imported.
LIGHT = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from paligemma_edge.runtime.cli.main import main
sys.exit(main())
"""


def call(
    *arguments: str | Path, light: bool = False, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = ["-c", LIGHT] if light else ["-m", "paligemma_edge"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        input=stdin,
        text=True,
        check=False,
        timeout=300,
    )


def refused(*arguments: str | Path, light: bool = False, code: int = 1) -> str:
    """The one line that a refused command prints."""
    done = call(*arguments, light=light)
    assert done.returncode == code, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("paligemma-edge: ")
    return line
