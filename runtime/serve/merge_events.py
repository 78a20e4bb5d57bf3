"""The events of several answers as one stream, each with the place of its answer.

All are asked at once; where one fails, the others are given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """What the streams give, as it comes: (place in `streams`, event).

    The first exception of any ends all. A stream is closed when it has ended, or this one is.

    Example:
        >>> async for place, event in merged([answering.events(...), answering.events(...)]):
        ...     print(place, event)
    """
    queue = asyncio.Queue[tuple[int, T] | Exception | None]()

    async def pour(place: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async for event in stream:
                queue.put_nowait((place, event))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            await stream.aclose()

    tasks = [asyncio.ensure_future(pour(*one)) for one in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
