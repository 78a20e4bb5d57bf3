"""matplotlib without its traces: a home that it was never used in stays as it is.

It lists the fonts of the system and keeps the list in the home; where that cannot be written, it
says so on standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "MPLCONFIGDIR"  # of its configuration and its cache, read at its import
_HOMES = (("XDG_CONFIG_HOME", "~/.config"), ("XDG_CACHE_HOME", "~/.cache"))


@contextmanager
def without_traces() -> Iterator[None]:
    """Import and use matplotlib with a folder that is removed again, unless the user has one."""
    if "matplotlib" in sys.modules or os.environ.get(_FOLDER) or _user_has_one():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="paligemma-edge-") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER]


def _user_has_one() -> bool:
    """Whether matplotlib can write where it was used before."""
    homes = (Path(os.environ.get(name) or usual) for name, usual in _HOMES)
    with contextlib.suppress(RuntimeError):  # nobody says where the home is
        return any(os.access(home.expanduser() / "matplotlib", os.W_OK) for home in homes)
    return False
