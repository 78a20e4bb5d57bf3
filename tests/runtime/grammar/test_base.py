from __future__ import annotations

from paligemma_edge.runtime.grammar.base import EndState


def test_behind_the_end_only_the_end_may_follow() -> None:
    ended = EndState(7)
    assert ended.allowed.tolist() == [7]
    assert ended.after(7) == ended
