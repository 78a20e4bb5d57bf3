"""The life of a server: it listens, opens the model, asks it the golden question, answers, drains.

It listens from the first moment, so that whoever watches it sees it load. Knows nothing of signals
but that somebody wants it to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from paligemma_edge.runtime.diagnostics.golden_check import check_golden
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.scheduling.image_store import ImageStore
from paligemma_edge.runtime.scheduling.reservation import QueueLimits
from paligemma_edge.runtime.scheduling.scheduler import Scheduler, SchedulerLimits
from paligemma_edge.runtime.serve.answering import Answering
from paligemma_edge.runtime.serve.app import create_app, create_loading_app
from paligemma_edge.runtime.serve.listen import addresses, listening, tls_context
from paligemma_edge.runtime.serve.metrics import Metrics
from paligemma_edge.runtime.serve.notify import Notifier
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.protocol import ConnectionLimits, ServerProtocol
from paligemma_edge.runtime.serve.readiness import Readiness
from paligemma_edge.runtime.serve.state import ServerState

_LOG = logging.getLogger("paligemma_edge.serve")
_WRITE_SECONDS = 5  # for answers that are complete and still on their way when the server ends

LoadModel = Callable[[], LoadedModel]


class Server:
    """A server of one model.

    Args:
        load: opens the model with a plan of its slots; called in a thread.
        model_id: what clients call it.
        options: how it listens and what it takes.
        on_ready: told the addresses when it takes questions.

    Example:
        >>> options = ServerOptions(port=0)
        >>> server = Server(lambda: load_model("mix.bundle", max_batch_size=4), "mix", options)
        >>> server.run()
    """

    def __init__(
        self,
        load: LoadModel,
        model_id: str,
        options: ServerOptions,
        *,
        on_ready: Callable[[list[str]], None] = lambda _addresses: None,
    ) -> None:
        self._load, self._model_id = load, model_id
        self._options, self._on_ready = options, on_ready
        self._readiness = Readiness()
        self._notifier = Notifier.of(os.environ)
        self._entrance = _Entrance(create_loading_app(options, self._readiness))
        self._wanted_end = threading.Event()
        self._scheduler: Scheduler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None

    def stop(self) -> bool:
        """Let it drain and end; any thread, or a signal's handler, may ask for it.

        Returns:
            False where the model is still loading, which nothing but the process's end can end.
        """
        self._wanted_end.set()
        self._wake()
        return self._readiness.phase != "loading"

    def run(self) -> None:
        """Serve until `stop`, and until every answer that had begun has ended, or time is up.

        Raises:
            OptionError: it cannot listen there, or its files of keys or certificates are unusable.
            BundleError, DeviceError: the model cannot be opened, or answers wrongly, or the device
                failed for good.
        """
        tls = tls_context(self._options)
        with listening(self._options) as sockets:
            http = http_server(self._entrance, self._options, tls)
            where = addresses(sockets, secure=tls is not None)
            asyncio.run(self._serve(http, sockets, where))

    async def _serve(
        self, http: HttpServer, sockets: list[socket.socket], where: list[str]
    ) -> None:
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(_log_loop_error)
        serving = asyncio.create_task(http.serve(sockets))
        with contextlib.ExitStack() as ends_later:
            try:
                _LOG.info("listening on %s", ", ".join(where))
                self._notifier.status("opening the model")
                model = await asyncio.wrap_future(_in_daemon(self._load_and_test))
                await self._answer(model, where, ends_later)
            finally:
                http.should_exit = True
                await serving

    def _load_and_test(self) -> LoadedModel:
        model = self._load()
        require_golden_answer(model)
        return model

    async def _answer(
        self, model: LoadedModel, where: list[str], ends_later: contextlib.ExitStack
    ) -> None:
        """Answer until the end is wanted, or the device has failed for good."""
        scheduler = Scheduler(model, _limits(self._options), self._beat)
        metrics = Metrics()
        answering = Answering(scheduler, ImageStore(model.pipeline.images), metrics.watch)
        ends_later.callback(answering.close)  # handlers that end meanwhile may need its threads
        self._entrance.app = create_app(self._state(answering, metrics), self._readiness)
        self._scheduler = scheduler
        scheduler.start()
        try:
            self._readiness.phase = "ready"
            self._notifier.ready(f"answering on {', '.join(where)}")
            _LOG.info("ready: %s, %s, on %s", self._model_id, model.variant, ", ".join(where))
            self._on_ready(where)
            await self._until_end(scheduler)
            await self._drain(scheduler)
        finally:
            scheduler.close()
        if scheduler.failure is not None:
            raise DeviceError(f"the engine stopped: {scheduler.failure}")

    def _state(self, answering: Answering, metrics: Metrics) -> ServerState:
        metrics.describe(answering.scheduler, self._model_id)
        return ServerState(answering, self._options, metrics, self._model_id, int(time.time()))

    async def _until_end(self, scheduler: Scheduler) -> None:
        assert self._woken is not None
        while not self._wanted_end.is_set() and scheduler.failure is None:
            await self._woken.wait()
            self._woken.clear()

    async def _drain(self, scheduler: Scheduler) -> None:
        self._readiness.phase = "stopping"
        self._notifier.stopping("ending answers")
        count, seconds = scheduler.running + scheduler.waiting, self._options.drain
        _LOG.info("stopping; %d requests have %g seconds to end", count, seconds)
        if not await asyncio.to_thread(scheduler.drain, seconds):
            left = scheduler.running + scheduler.waiting
            _LOG.warning("%d requests had not ended and were given up", left)

    def _beat(self) -> None:
        """The engine thread lives; or it has failed, of which it tells last."""
        self._notifier.beat()
        if self._scheduler is not None and self._scheduler.failure is not None:
            self._wake()

    def _wake(self) -> None:
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)


def require_golden_answer(model: LoadedModel) -> None:
    """DeviceError where an open model does not answer the golden question as the original did."""
    checked = check_golden(model)
    if not checked.passed:
        differences = "".join(f"; {line}" for line in checked.differences())
        raise DeviceError(
            f"{checked.summary()}{differences}, so it is not served; see "
            f"`paligemma-edge check {model.bundle.path}`"
        )
    if checked.answer is None:
        _LOG.info("there is no golden answer to compare; `paligemma-edge verify` makes one")


def model_id_of(bundle: str) -> str:
    """What clients call a model: its bundle's folder without the ending, or its name on the Hub."""
    path = Path(bundle)
    return path.absolute().name.removesuffix(".bundle") if path.exists() else bundle


def _limits(options: ServerOptions) -> SchedulerLimits:
    queue = QueueLimits(
        jobs=options.max_waiting,
        size=options.max_waiting_bytes,
        jobs_of_client=options.max_waiting_per_client,
    )
    return SchedulerLimits(queue=queue, steps_between_prefills=options.steps_between_prefills)


@dataclass
class _Entrance:
    """What uvicorn calls: the application of the moment. Nothing that it raises gets out."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Cut at the end of the server: the client sees its connection close.
        with contextlib.suppress(asyncio.CancelledError):
            await self.app(scope, receive, send)


class HttpServer(uvicorn.Server):
    """uvicorn without its way of signals, which are for the command."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave them alone."""
        return contextlib.nullcontext()


def http_server(
    app: ASGIApp, options: ServerOptions, tls: ssl.SSLContext | None = None
) -> HttpServer:
    """uvicorn with our protocol and limits; it is given sockets when it serves."""
    limits = ConnectionLimits.of(options)
    config = uvicorn.Config(
        cast(Any, app),
        http=cast(type[asyncio.Protocol], partial(ServerProtocol, limits=limits)),
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=cast(int, options.keep_alive_seconds),  # of `call_later`
        timeout_graceful_shutdown=_WRITE_SECONDS,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    return HttpServer(config)


def _in_daemon(work: Callable[[], LoadedModel]) -> Future[LoadedModel]:
    """Work in a thread that the end of the process does not wait for."""
    future: Future[LoadedModel] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _LOG.error("%s", context["message"], exc_info=context.get("exception"))
