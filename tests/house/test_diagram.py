"""The diagram of the house shows the imports of today."""

from __future__ import annotations

from PIL import Image

from tests.house.house import DIAGRAM, TABLE, Room, arrows, as_json, digest, read_house
from tests.house.layout import lay_out

STALE = "docs/house.json is not what the imports and docstrings of today say: `make house` mends it"


def test_the_source_table_is_that_of_today() -> None:
    assert TABLE.read_text(encoding="utf-8") == as_json(read_house()), STALE


def test_the_diagram_was_drawn_from_that_table() -> None:
    with Image.open(DIAGRAM) as image:
        assert image.info["Source"] == digest(read_house()), STALE


def test_an_arrow_that_a_longer_way_shows_is_left_out() -> None:
    house = {
        "a.ground": Room("", ()),
        "a.low": Room("", ("a.ground",)),
        "a.middle": Room("", ("a.low", "a.ground")),
        "a.high": Room("", ("a.low", "a.middle", "b.other")),
        "b.other": Room("", ()),
    }
    assert arrows(house, "a") == [("a.middle", "a.low"), ("a.high", "a.middle")]


def test_every_arrow_goes_down_and_no_box_is_over_another() -> None:
    arrows = [("d", "b"), ("d", "c"), ("c", "b"), ("b", "a"), ("d", "e")]
    layout = lay_out("abcde", arrows)
    assert all(layout.rows[upper] > layout.rows[lower] for upper, lower in arrows)
    for name, row in layout.rows.items():
        for other in layout.rows.keys() - {name}:
            apart = abs(layout.places[name] - layout.places[other])
            assert layout.rows[other] != row or apart >= 1
