from __future__ import annotations

from paligemma_edge.runtime.grammar.base import EndState


def test_behind_the_end_only_the_end_may_follow() -> None:
    ended = EndState((1, 7))
    assert ended.allowed is not None
    assert ended.allowed.tolist() == [1, 7]
    assert ended.after(7) == ended
