"""What the server counts, for Prometheus: names as vLLM's, behind `paligemma_edge_`.

Knows events of jobs. Knows nothing of what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paligemma_edge.runtime.scheduling.events import Event, Failed, Finished, TokenGenerated
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.timing import Stage

if TYPE_CHECKING:
    from paligemma_edge.runtime.scheduling.scheduler import Scheduler

_NAMESPACE = "paligemma_edge"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REFUSALS = (409, 429, 503, 504)  # statuses that say that the server would not, or not in time
_STAGES: dict[Stage, str] = {"vision": "vision", "prefill": "prefill", "steps": "decode"}


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of images and prompts.")
        self._tokens = self._counter("generation_tokens", "Tokens of answers.")
        self._answered = self._counter("request_success", "Answers.", "finished_reason")
        self._failed = self._counter("request_failure", "Questions without an answer.", "reason")
        self._rejected = self._counter("requests_rejected", "Refused requests.", "reason")
        self._cached = self._counter("feature_cache_hits", "Images that were encoded before.")
        self._first = self._histogram("time_to_first_token", "From arrival to first token.")
        self._between = self._histogram("inter_token_latency", "Between two tokens.")
        self._whole = self._histogram("e2e_request_latency", "From arrival to the answer's end.")
        self._queue = self._histogram("request_queue_time", "Waiting for a slot.")
        self._stages = {
            stage: self._histogram(f"request_{name}_time", f"Of the stage {stage}.")
            for stage, name in _STAGES.items()
        }

    def watch(self) -> Callable[[Event], None]:
        """What is to be told the events of a question that arrives now."""
        return _Watch(self)

    def refused(self, error: ApiError) -> None:
        """Count a request that was answered with an error."""
        if error.status in _REFUSALS:
            self._rejected.labels(error.code).inc()

    def describe(self, scheduler: Scheduler, model_id: str) -> None:
        """Show what the scheduler is doing, whenever it is asked."""
        model = scheduler.model
        Info(_NAMESPACE, "What is served.", registry=self.registry).info(
            {"bundle": model_id, "variant": model.variant, "device": model.device}
        )
        self._gauge("num_requests_running", "Questions in a slot.", lambda: scheduler.running)
        self._gauge("num_requests_waiting", "Questions in the queue.", lambda: scheduler.waiting)
        self._gauge("slots_busy", "Slots that hold a question.", lambda: scheduler.running)
        self._gauge("slots", "Slots that there are.", lambda: scheduler.slots)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def first_token(self, seconds: float) -> None:
        """An answer has begun."""
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """An answer has gone on."""
        self._between.observe(seconds)

    def finished(self, event: Finished, seconds: float) -> None:
        """An answer is complete."""
        reason = "stop" if event.generation is None else event.generation.finish_reason
        self._answered.labels(reason).inc()
        self._prompt_tokens.inc(event.prompt_tokens)
        self._tokens.inc(event.completion_tokens)
        self._whole.observe(seconds)
        self._queue.observe(event.queue_seconds)
        for stage, histogram in self._stages.items():
            if stage in event.seconds:
                histogram.observe(event.seconds[stage])
        if "vision" not in event.seconds:
            self._cached.inc()

    def failed(self, event: Failed) -> None:
        """There is no answer."""
        reason = type(event.error).__name__.removesuffix("Error")
        self._failed.labels(reason).inc()

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, namespace=_NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(
            f"{name}_seconds",
            f"Seconds. {about}",
            namespace=_NAMESPACE,
            registry=self.registry,
            buckets=_SECONDS,
        )

    def _gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        Gauge(name, about, namespace=_NAMESPACE, registry=self.registry).set_function(value)


class _Watch:
    """Takes the time between the events of one question."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._last: float | None = None  # when the last token came

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, TokenGenerated):
            if self._last is None:
                self._metrics.first_token(now - self._arrived)
            else:
                self._metrics.next_token(now - self._last)
            self._last = now
        elif isinstance(event, Finished):
            self._metrics.finished(event, now - self._arrived)
        elif isinstance(event, Failed):
            self._metrics.failed(event)


def metrics_route(metrics: Metrics) -> Route:
    """The route that Prometheus asks."""

    async def answer(_request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Route("/metrics", answer, name="metrics")
