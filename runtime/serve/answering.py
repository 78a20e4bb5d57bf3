"""The scheduler as asynchronous handlers ask it: images and prompts are checked in threads.

Knows jobs and events. Knows nothing of JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.scheduling.errors import CancelledError
from paligemma_edge.runtime.scheduling.events import Event, Failed, Finished
from paligemma_edge.runtime.scheduling.image_store import ImageStore, StoredImage
from paligemma_edge.runtime.scheduling.job import Job, Question
from paligemma_edge.runtime.scheduling.reservation import Reservation
from paligemma_edge.runtime.scheduling.scheduler import Scheduler

T = TypeVar("T")
_WORKERS = 2  # images that are read, prompts and patterns that are checked, at a time


@dataclass(frozen=True, eq=False)
class Answering:
    """Asks the scheduler on behalf of handlers that run in one event loop.

    `watch` is called for each question, and what it gives for each of its events.
    """

    scheduler: Scheduler
    images: ImageStore
    watch: Callable[[], Callable[[Event], None]] = lambda: lambda _event: None
    _workers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_WORKERS, thread_name_prefix="serve-worker")
    )

    def reserve(self, client: str, encoded_bytes: int, images: int) -> Reservation:
        """A place in the queue for a question about so many images, before they are read.

        QueueFullError or ClosingError where there is none. It is to be closed, or given to
        `events`.
        """
        pixels = self.scheduler.model.bundle.manifest.image
        size = encoded_bytes + images * 3 * pixels.size**2 * 4
        return self.scheduler.reserve(client, size)

    async def image(self, encoded: bytes) -> StoredImage:
        """Read the bytes of an image; ImageError where they cannot be read."""
        return await self.in_worker(lambda: self.images.add(encoded))

    async def question(
        self, build: Callable[[Pipeline], Question], adapter: str | None = None
    ) -> Question:
        """Check a question, grammars included; PromptError or OptionError where it is refused."""
        pipeline = self.scheduler.model.with_adapter(adapter)
        return await self.in_worker(lambda: build(pipeline))

    async def in_worker(self, work: Callable[[], T]) -> T:
        """Do what takes longer than a moment in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def events(
        self,
        question: Question,
        images: ImageBatch,
        reservation: Reservation,
        *,
        timeout: float,
        adapter: str | None = None,
        client: str = "",
        stop: Sequence[str] = (),
        supersede: str | None = None,
        request_id: str = "",
        stream_objects: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Submit a job; its events, the last of which is `Finished`. The error is raised.

        The job is cancelled when the generator is closed before its end. `timeout` is in seconds
        from now.
        """
        loop, queue, seen = asyncio.get_running_loop(), asyncio.Queue[Event](), self.watch()
        job = Job(
            question=question,
            images=images,
            listener=lambda event: _call_soon(loop, queue, event),
            deadline=time.monotonic() + timeout,
            adapter=adapter,
            client=client,
            stop=tuple(stop),
            supersede=supersede,
            request_id=request_id,
            stream_objects=stream_objects,
        )
        self.scheduler.submit(job, reservation)
        ended = False
        try:
            while not ended:
                event = await queue.get()
                seen(event)
                ended = isinstance(event, Finished | Failed)
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            if not ended:
                self.scheduler.cancel(job)

    async def finished(self, request: Request, events: AsyncGenerator[Event, None]) -> Finished:
        """The answer alone. CancelledError where the client leaves before it."""
        async with aclosing(events):
            return await self.while_connected(request, _last(events))

    async def while_connected(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """What some work gives. CancelledError where the client leaves before it is done."""
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise CancelledError("the client left before the answer was complete")
        finally:
            gone.cancel()
            answer.cancel()
            await asyncio.wait((answer, gone))

    def close(self) -> None:
        """Let the threads end."""
        self._workers.shutdown(cancel_futures=True)


def _call_soon(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Event], event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, event)


async def _last(events: AsyncGenerator[Event, None]) -> Finished:
    async for event in events:
        if isinstance(event, Finished):
            return event
    raise OptionError("the answer did not end")  # a generator that was closed by its caller


async def _disconnected(request: Request) -> None:
    """Wait until the client has left; its whole body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
