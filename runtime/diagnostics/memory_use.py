"""How much memory a variant takes while it answers, measured in a process of its own.

Knows one short answer and what memory it took; None where the system has no such figures.

    python -m paligemma_edge.runtime.diagnostics.memory_use BUNDLE VARIANT IMAGE PROMPT TOKENS
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

from paligemma_edge.runtime.bundle.fidelity import MemoryUse
from paligemma_edge.runtime.system.linux import process_memory
from paligemma_edge.runtime.system.streams import open_streams

_SHORT = 8  # tokens of an answer: enough for every graph to have run


def measure_memory(
    bundle: str | os.PathLike[str],
    variant: str,
    image: str | os.PathLike[str],
    prompt: str,
    *,
    max_new_tokens: int = _SHORT,
) -> MemoryUse | None:
    """Answer one prompt in a new process and say what that process took.

    None where the system has no such figures, or the process failed, as one does that the system
    stops for want of memory.
    """
    question = (os.fspath(bundle), variant, os.fspath(image), prompt, str(max_new_tokens))
    command = [
        sys.executable,
        "-P",
        "-m",
        "paligemma_edge.runtime.diagnostics.memory_use",
        *question,
    ]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - ourselves
    try:
        return MemoryUse(**json.loads(done.stdout)) if done.returncode == 0 else None
    except (ValueError, TypeError):
        return None


def resident() -> MemoryUse | None:
    """Memory of this process now; None where the system has no such figures."""
    memory = process_memory()
    if "peak" not in memory or "anonymous" not in memory:
        return None
    return MemoryUse(peak_bytes=memory["peak"], anonymous_bytes=memory["anonymous"])


def main() -> None:
    """Answer, then print as JSON what it took."""
    open_streams()
    from paligemma_edge.runtime.model import PaliGemma

    bundle, variant, image, prompt, tokens = sys.argv[1:]
    model = PaliGemma(bundle, variant=variant)
    model.generate(image, prompt, max_new_tokens=int(tokens))
    memory = resident()
    sys.stdout.write(json.dumps(None if memory is None else dataclasses.asdict(memory)))


if __name__ == "__main__":
    main()
