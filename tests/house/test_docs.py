"""The page about the architecture speaks of files that exist."""

from __future__ import annotations

import re

from tests.house.house import END, PAGE, START, read_house, with_table
from tests.house.imports import FOLDERS, ROOT

PATH = re.compile(rf"`((?:{'|'.join((*FOLDERS, 'tests'))})/[\w./]*)`")


def test_every_path_in_the_page_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written_by_hand = page[: page.index(START)] + page[page.index(END) :]
    paths = set(PATH.findall(written_by_hand))
    assert len(paths) > 30
    assert not sorted(path for path in paths if not (ROOT / path).exists())


def test_its_table_of_rooms_is_that_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert START in page
    assert page == with_table(page, read_house()), "`make house` mends it"
