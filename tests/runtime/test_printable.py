from __future__ import annotations

from paligemma_edge.runtime.printable import printable


def test_control_characters_are_escaped_and_lines_and_letters_kept() -> None:
    assert printable("größe 🐱\nnext") == "größe 🐱\nnext"
    assert printable("a\x1b[31mb\rc\td\udcff") == r"a\x1b[31mb\rc\td\udcff"
