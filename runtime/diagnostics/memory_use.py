"""How much memory a variant takes while it answers, measured in a process of its own.

Knows one short answer and what it took; None where the system does not tell.

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

    None where the system does not tell, or the process failed, as one does that the system
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
    """What this process takes now; None where the system does not tell."""
    told = process_memory()
    if "peak" not in told or "anonymous" not in told:
        return None
    return MemoryUse(peak_bytes=told["peak"], anonymous_bytes=told["anonymous"])


def main() -> None:
    """Answer, then print as JSON what it took."""
    from paligemma_edge.runtime.model import PaliGemma

    bundle, variant, image, prompt, tokens = sys.argv[1:]
    model = PaliGemma(bundle, variant=variant)
    model.generate(image, prompt, max_new_tokens=int(tokens))
    found = resident()
    sys.stdout.write(json.dumps(None if found is None else dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
