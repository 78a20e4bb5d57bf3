"""Stop texts: what is shown is what comes before the first of them, however the text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.scheduling.stop_texts import StopTexts

LETTERS = st.text("ab;", max_size=12)


@given(
    pieces=st.lists(st.text("ab;", max_size=4), max_size=8),
    stops=st.lists(st.text("ab;", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_ends_where_the_first_stop_text_begins(
    pieces: list[str], stops: list[str]
) -> None:
    """As if the whole text were searched after each piece, since an answer ends at once."""
    texts, whole = StopTexts(stops), ""
    for place, piece in enumerate(pieces):
        whole += piece
        texts.push(piece, ended=place == len(pieces) - 1)
        found = [whole.find(stop) for stop in stops if stop in whole]
        assert texts.found == bool(found)
        if found:
            assert texts.shown == whole[: min(found)]
            return
        assert whole.startswith(texts.shown)
    assert texts.shown == whole


@given(pieces=st.lists(st.text("ab;", max_size=4), min_size=1, max_size=8))
def test_no_more_is_held_back_than_may_become_a_stop_text(pieces: list[str]) -> None:
    texts, whole = StopTexts(["ab;"]), ""
    for piece in pieces:
        whole += piece
        texts.push(piece, ended=False)
        if texts.found:
            return
        held = whole[len(texts.shown) :]
        assert "ab;".startswith(held)
        assert len(held) < len("ab;")
