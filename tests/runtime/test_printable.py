"""Texts of strangers in one line."""

from __future__ import annotations

from paligemma_edge.runtime.printable import printable, short_line


def test_control_characters_are_escaped_and_others_kept() -> None:
    assert printable("caf\u00e9 'x' \\ \u661f") == "caf\u00e9 'x' \\ \u661f"
    assert printable("a\nb\x1b\udc80\u202e") == "a\nb\\x1b\\udc80\\u202e"


def test_a_line_is_one_line_and_short() -> None:
    assert short_line("a\nb\r") == "a\\nb\\r"
    assert short_line("x" * 600) == "x" * 600
    for text in ("x" * 10_000, "\x1b" * 10_000):
        assert len(short_line(text)) == 600
        assert short_line(text).endswith("...")
        assert short_line(short_line(text)) == short_line(text)
