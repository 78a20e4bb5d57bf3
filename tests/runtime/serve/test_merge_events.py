"""Several streams as one: all at once, and ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from paligemma_edge.runtime.serve.merge_events import merged


async def counting(to: int, closed: list[int]) -> AsyncGenerator[int, None]:
    """Numbers, after each of which the others have their turn."""
    try:
        for number in range(to):
            yield number
            await asyncio.sleep(0)
    finally:
        closed.append(to)


def test_events_come_as_they_are_made() -> None:
    async def run() -> list[tuple[int, int]]:
        streams = [counting(to, []) for to in (2, 0, 3)]
        return [event async for event in merged(streams)]

    events = asyncio.run(run())
    assert sorted(events) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert events.index((2, 0)) < events.index((0, 1))


def test_nothing_is_merged_of_nothing() -> None:
    async def run() -> list[tuple[int, int]]:
        return [event async for event in merged(list[AsyncGenerator[int, None]]())]

    assert asyncio.run(run()) == []


def test_one_that_fails_ends_all() -> None:
    closed: list[str] = []

    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("as it is")

    async def endless() -> AsyncGenerator[int, None]:
        try:
            await asyncio.Event().wait()
            yield 2
        finally:
            closed.append("endless")

    async def run() -> None:
        with pytest.raises(ValueError, match="as it is"):
            async for _ in merged([endless(), failing()]):
                pass
        assert closed == ["endless"]

    asyncio.run(run())


def test_streams_are_closed_with_the_whole() -> None:
    async def run() -> list[int]:
        closed: list[int] = []
        whole = merged([counting(to, closed) for to in (10**9, 10**8)])
        while await anext(whole) != (1, 0):
            pass
        await whole.aclose()
        return sorted(closed)

    assert asyncio.run(run()) == [10**8, 10**9]
