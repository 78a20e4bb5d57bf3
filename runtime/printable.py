"""Texts of files and of models, as a terminal can be given them: nothing in them commands it.

Every error of this package and everything that `Console` writes passes here, so that no message
has to think of it. Records in JSON keep texts as they are.
"""

from __future__ import annotations

from unicodedata import category

_LONGEST = 600  # characters; the maker's note, the longest text of a manifest, has 500


def printable(text: str) -> str:
    """The text with its line breaks, and with all else escaped that is not seen as it is.

    That is what Python does not print: control characters, those that reverse the direction of
    writing, those without a width, and bytes of names that are no text. Spaces of other scripts
    stay.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_plain(c) else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The text as `printable` gives it, with its line breaks escaped too."""
    return printable(text).replace("\n", "\\n")


def short_line(text: str, most: int = _LONGEST) -> str:
    """The text in one line of at most so many characters; what is too long lacks its middle.

    A message begins with what was found, which may be long, and ends with what to do.
    """
    if len(text) > 2 * most:  # no more of it is looked at than can be shown
        text = text[:most] + text[-most:]
    line = one_line(text)
    if len(line) <= most:
        return line
    last = most // 3
    return f"{line[: most - last - 3]}...{line[-last:]}"


def _is_plain(character: str) -> bool:
    return character.isprintable() or character == "\n" or category(character) == "Zs"
