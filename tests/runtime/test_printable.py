"""Texts of strangers in one line."""

from __future__ import annotations

import pickle
import unicodedata

import pytest

from paligemma_edge.runtime.errors import BundleError, MissingExtraError, OutputError
from paligemma_edge.runtime.printable import one_line, printable, short_line


def test_control_characters_are_escaped_and_others_kept() -> None:
    assert printable("caf\u00e9 'x' \\ \u661f") == "caf\u00e9 'x' \\ \u661f"
    assert printable("a\nb\x1b\udc80\u202e") == "a\nb\\x1b\\udc80\\u202e"


# The categories of Unicode that no terminal shows as a character: Cc, Cf, Cs, Zl, Zp.
HIDDEN = [
    *("\r", "\t", "\x00", "\x07", "\x1b", "\x7f", "\x85", "\x9b"),  # C0 and C1
    *("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad"),  # without a width
    *("\u202a", "\u202e", "\u2066", "\u2069", "\u200f", "\u061c"),  # the direction of writing
    *("\u2028", "\u2029", "\udce9", "\ud800", "\U000e0041"),
]


@pytest.mark.parametrize("character", HIDDEN)
def test_what_is_not_seen_is_escaped(character: str) -> None:
    assert unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    for function in (printable, one_line, short_line):
        shown = function(f"a{character}b")
        assert shown == "a" + character.encode("unicode_escape").decode() + "b"
        assert shown.isprintable()


def test_spaces_of_other_scripts_are_seen() -> None:
    assert one_line("1\u00a0000 \u661f\u3000\u2009.") == "1\u00a0000 \u661f\u3000\u2009."


def test_a_link_of_a_terminal_and_a_forged_line_are_text() -> None:
    assert one_line("\x1b]8;;http://x\x1b\\y\npaligemma-edge: passed") == (
        r"\x1b]8;;http://x\x1b\y\npaligemma-edge: passed"
    )


def test_a_line_is_one_line_and_short() -> None:
    assert short_line("a\nb\r") == "a\\nb\\r"
    assert short_line("x" * 600) == "x" * 600
    for text in ("x" * 10_000, "\x1b" * 10_000):
        assert len(short_line(text)) == 600
        assert "..." in short_line(text)
        assert short_line(short_line(text)) == short_line(text)


def test_what_is_cut_keeps_its_end() -> None:
    long = f"name is {'x' * 100_000}, wanted a short one; rename it"
    assert short_line(long).startswith("name is xxx")
    assert short_line(long).endswith("x, wanted a short one; rename it")
    assert short_line(long, 40) == "name is xxxxxxxxxxxxxxxx...ne; rename it"


def test_the_message_of_any_error_is_short_and_harmless() -> None:
    text = f"a\x1b[2J\nb {'x' * 100_000}; do this"
    for error in (BundleError(text), MissingExtraError(text), OutputError(28, text)):
        message = str(error)
        assert r"a\x1b[2J\nb xxx" in message
        assert message.endswith("x; do this")
        assert len(message) < 700
        again = pickle.loads(pickle.dumps(error))  # as a process pool does
        assert (type(again), again.args) == (type(error), error.args)
    assert OutputError(28, text).errno == 28
    assert len(OutputError(28, text).strerror or "") == 600
