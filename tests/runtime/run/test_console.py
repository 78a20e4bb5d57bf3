"""What a terminal gets of names and answers, which may hold any character."""

from __future__ import annotations

import io

from paligemma_edge.runtime.run.console import Console


def test_nothing_commands_the_terminal() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    console.write("a\x1b[2J")
    console.print("b\x9bc\nd\t\u00e9")
    console.message("e\x07")
    console.note("f\r")
    assert out.getvalue() == "a\\x1b[2Jb\\x9bc\nd\\t\u00e9\n"
    assert err.getvalue() == "paligemma-edge: e\\x07\npaligemma-edge: f\\r\n"
