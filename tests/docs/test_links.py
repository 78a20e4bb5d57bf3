"""Every link of a page leads somewhere, and what a newcomer reads first is short."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.markdown import ROOT, anchors, links, pages

README_LINES = 150


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = [link for link in links(page) if not _leads_somewhere(page, link)]
    assert not broken


def _leads_somewhere(page: Path, link: str) -> bool:
    """Whether a file and heading of this repository exist; other addresses are not fetched."""
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme == "https" and bool(parts.netloc)
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    return not parts.fragment or parts.fragment in anchors(target)


def test_links_and_headings_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `run` & two\n\n## Same\n\n## Same\n\n[![image](a.png)](b.md#same-1)\n\n"
        "| table |\n| --- |\n| [in it](c.md) |\n\n```\n[not](a-link)\n```\n"
    )
    assert links(page) == ["b.md#same-1", "a.png", "c.md"]
    assert anchors(page) == {"one-run--two", "same", "same-1"}


def test_every_page_of_docs_is_in_its_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {urlsplit(link).path for link in links(index)}
    missing = {path.name for path in index.parent.glob("*.md")} - listed - {index.name}
    assert not missing


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
