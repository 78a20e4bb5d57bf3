"""What a terminal gets of names and answers, which may hold any character."""

from __future__ import annotations

import io

from paligemma_edge.runtime.system.console import Console


def test_nothing_commands_the_terminal() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    console.write("a\x1b[2J")
    console.write("b\x9bc\nd\t\u00e9\n")
    console.answer("a\nb\r", "x" * 1000)
    console.print("c\u202e\nd", "x" * 1000)
    console.message("e\x07")
    console.note("f\r")
    first, second, *lines = out.getvalue().splitlines()
    assert (first, second) == ("a\\x1b[2Jb\\x9bc", "d\\t\u00e9")
    assert lines[:3] == ["a\\nb\\r", "x" * 1000, "c\\u202e\\nd"]
    assert len(lines[3]) == 600
    assert err.getvalue() == "paligemma-edge: e\\x07\npaligemma-edge: f\\r\n"
