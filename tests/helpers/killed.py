"""An action on a bundle, killed at each of its steps on the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Runs an action once for each of its steps, in a child that kills itself there; the bundle that
# each child left is in a folder named by the step. The last one finished.
_KILLER = """
import importlib, itertools, os, pathlib, shutil, signal, sys
from paligemma_edge.runtime.system import disk

STEPS = [(pathlib.Path, "replace"), (pathlib.Path, "rename"), (pathlib.Path, "mkdir"),
         (os, "unlink"), (os, "rmdir"), (disk, "sync"), (disk, "write_synced"),
         (disk, "_renameat2")]

def kill_at(step):
    def tick():
        nonlocal step
        if step == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        step -= 1
    def wrap(owner, name, function):
        def wrapped(*args, **options):
            tick()
            result = function(*args, **options)
            tick()
            return result
        setattr(owner, name, wrapped)
    for owner, name in STEPS:
        wrap(owner, name, getattr(owner, name))

bundle, (module, name) = pathlib.Path(sys.argv[1]), sys.argv[2].split(":")
action = getattr(importlib.import_module(module), name)
for step in itertools.count():
    copy = bundle.parent / "steps" / str(step) / "a.bundle"
    shutil.copytree(bundle, copy)
    child = os.fork()
    if not child:
        kill_at(step)
        action(copy)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def at_each_step(bundle: Path, action: str) -> list[Path]:
    """The bundles that an action left which was killed, `module:function` of a bundle's path."""
    subprocess.run([sys.executable, "-c", _KILLER, str(bundle), action], check=True)
    steps = sorted((bundle.parent / "steps").iterdir(), key=lambda step: int(step.name))
    return [step / "a.bundle" for step in steps]
