"""Server-sent events: each is read as it was meant, and the stream is never silent for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from openai._streaming import SSEDecoder

from paligemma_edge.runtime.serve.sse import PING, sse, with_pings


def test_a_client_reads_what_was_meant() -> None:
    """openai-python's own reader, which drops comments as the standard says."""
    stream = sse(b'{"a":1}') + PING + sse(b"{}", event="done")
    events = list(SSEDecoder().iter_bytes(iter([stream[:5], stream[5:]])))
    assert [(one.event, json.loads(one.data)) for one in events] == [
        (None, {"a": 1}),
        ("done", {}),
    ]
    assert httpx.Response(200, content=stream).text.endswith("\n\n")


def test_where_nothing_comes_a_ping_does() -> None:
    async def run() -> list[bytes]:
        gate, got = asyncio.Event(), []

        async def messages() -> AsyncIterator[bytes]:
            yield b"first"
            await gate.wait()
            yield b"second"

        async for message in with_pings(messages(), seconds=0):
            got.append(message)
            if got.count(PING) == 2:
                gate.set()
        return got

    got = asyncio.run(run())
    assert [one for one in got if one != PING] == [b"first", b"second"]
    assert got.count(PING) >= 2


def test_a_stream_that_is_closed_closes_what_it_reads() -> None:
    closed = []

    async def run() -> None:
        async def messages() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        stream = with_pings(messages(), seconds=0)
        async for message in stream:
            if message == PING:
                break
        await stream.aclose()

    asyncio.run(run())
    assert closed == [True]


def test_an_error_of_the_messages_is_raised() -> None:
    async def run() -> None:
        async def messages() -> AsyncIterator[bytes]:
            yield b"first"
            raise ValueError("broken")

        async for _ in with_pings(messages()):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
