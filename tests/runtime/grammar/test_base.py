from __future__ import annotations

from paligemma_edge.runtime.grammar.base import Ended


def test_behind_the_end_only_the_end_may_follow() -> None:
    ended = Ended(7)
    assert ended.allowed.tolist() == [7]
    assert ended.after(7) == ended
