"""A Markdown page as its tests need it: code blocks, links and headings, by CommonMark's rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the one of its first line of code, from 1 on."""

    page: Path
    language: str
    code: str
    line: int
    not_run: str | None  # why it cannot run here, from the comment above it

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page that people read here."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "samples/**/*.md")
    found = [path for name in (*names, "tests/**/*.md") for path in sorted(ROOT.glob(name))]
    return [path for path in found if path.is_file()]


def documented() -> list[Path]:
    """The pages for users and contributors, whose examples run."""
    kept = ("docs", "README.md", "CONTRIBUTING.md")
    return [path for path in pages() if path.relative_to(ROOT).parts[0] in kept]


def read_blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a language, in order."""
    blocks, above = [], ""
    for token in _tokens(page):
        if token.type == "fence" and token.info.split(" ")[0] == language:
            assert token.map is not None
            reason = _NOT_RUN.fullmatch(above)
            not_run = reason and reason[1]
            blocks.append(Block(page, language, token.content, token.map[0] + 2, not_run))
        above = token.content.strip() if token.type == "html_block" else ""
    return blocks


def languages(page: Path) -> set[str]:
    """What its fenced blocks are called; an unnamed or indented one is empty text."""
    kinds = ("fence", "code_block")
    return {token.info.split(" ")[0] for token in _tokens(page) if token.type in kinds}


def links(page: Path) -> list[str]:
    """Where its links and images lead, as they are written."""
    return [
        str(token.attrs["href" if token.type == "link_open" else "src"])
        for token in _inline(_tokens(page))
        if token.type in ("link_open", "image")
    ]


def anchors(page: Path) -> set[str]:
    """The fragments that lead to its headings, as GitHub makes them.

    Source: https://docs.github.com/en/get-started/writing-on-github/getting-started-with-writing-and-formatting-on-github/basic-writing-and-formatting-syntax#section-links
    """
    tokens = _tokens(page)
    heads = [text for head, text in pairwise(tokens) if head.type == "heading_open"]
    counts: Counter[str] = Counter()
    names = set()
    for head in heads:
        kept = [one.content for one in head.children or () if one.type in ("text", "code_inline")]
        name = re.sub(r"[^\w\- ]", "", "".join(kept).strip().lower()).replace(" ", "-")
        names.add(f"{name}-{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return names


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inline(tokens: Sequence[Token]) -> Iterator[Token]:
    """Tokens within lines; the image of a link is among them."""
    for token in tokens:
        if token.children:
            yield from token.children
            yield from _inline(token.children)
