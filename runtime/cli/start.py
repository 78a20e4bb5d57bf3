"""Where the program starts: what its streams and signals do, before anything else is imported.

Imports nothing but what Python itself has imported by then, so that hardly a moment is left in
which a signal would be answered by a traceback.
"""

from __future__ import annotations

import os

_SIGINT = 2  # by its number, since the module `signal` is not imported yet


def main() -> int:
    """The command `paligemma-edge`, as `runtime.cli.main.main`, in a process of its own."""
    try:
        _end_on_signals()
        from paligemma_edge.runtime.system.streams import open_streams

        open_streams()
        from paligemma_edge.runtime.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before the first line of the above was done
        _end(_SIGINT, None)
        raise


def _end_on_signals() -> None:
    """While modules are imported and when all is done, nothing has to be cleaned up."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    try:
        os.write(2, b"paligemma-edge: interrupted\n")
    finally:
        os._exit(128 + number)
