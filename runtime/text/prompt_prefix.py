"""What a prompt may have before its text: `<image>` for each image, then `<bos>`.

transformers' processor once asked its users to write both, and its examples still have the first.
"""

from __future__ import annotations

import re

IMAGE_MARKER = "<image>"
_PREFIX = re.compile(f"((?:{IMAGE_MARKER})*)(?:<bos>)?")


def split_prefix(prompt: str) -> tuple[int, str]:
    """How many markers of images a prompt begins with, and its text without them and `<bos>`."""
    match = _PREFIX.match(prompt)
    assert match is not None, "the pattern matches the empty text too"
    return match[1].count(IMAGE_MARKER), prompt[match.end() :]
