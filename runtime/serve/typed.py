"""POST /v1/caption, ask, ocr, detect, segment, classify and generate.

The order of a request: its body, its places in the queue, the image read, the questions checked,
and the answers, whole or as a stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.scheduling.events import Event
from paligemma_edge.runtime.scheduling.image_store import StoredImage
from paligemma_edge.runtime.scheduling.job import Question
from paligemma_edge.runtime.scheduling.reservation import Reservation
from paligemma_edge.runtime.serve.auth import client_of
from paligemma_edge.runtime.serve.chat_wire import ImageInfo
from paligemma_edge.runtime.serve.errors import ApiError, as_api_error
from paligemma_edge.runtime.serve.merge_events import merged
from paligemma_edge.runtime.serve.models import adapter_named
from paligemma_edge.runtime.serve.request_log import request_id_of
from paligemma_edge.runtime.serve.sse import EventStream
from paligemma_edge.runtime.serve.state import ServerState, server_state
from paligemma_edge.runtime.serve.typed_answers import AboutImage, AnswerStyle, TaskName
from paligemma_edge.runtime.serve.typed_body import BodyReader, TypedBody
from paligemma_edge.runtime.serve.typed_questions import BuildQuestion, questions_of, sampling_of
from paligemma_edge.runtime.serve.typed_stream import streamed, whole_body
from paligemma_edge.runtime.serve.typed_wire import (
    AskOptions,
    CaptionOptions,
    ClassifyOptions,
    DetectOptions,
    GenerateOptions,
    ImageReference,
    OcrOptions,
    SegmentOptions,
    ShownObjects,
    TypedOptions,
)


@dataclass(frozen=True, eq=False)
class TypedEndpoint:
    """One task's endpoint."""

    task: TaskName
    options: type[TypedOptions]

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/v1/{self.task}"

    @cached_property
    def reader(self) -> BodyReader:
        """Reads its requests."""
        return BodyReader(self.options)

    async def respond(self, request: Request) -> Response:
        """Answer a request; the app makes answers of what is raised."""
        asked = _Asked(request, self.task, await self.reader.read(request))
        with ExitStack() as places:
            reservations = [
                places.enter_context(asked.reserve(n)) for n in range(len(asked.builds))
            ]
            start = time.perf_counter()
            image = await asked.image()
            style = asked.style(image, time.perf_counter() - start)
            events = asked.events(await asked.questions(), image, reservations)
            if not asked.options.stream:
                content = await whole_body(request, style, events, as_list=asked.is_list)
                return Response(content, media_type="application/json")
            messages = streamed(asked.state.answering, style, events)
            return EventStream(messages, places.pop_all())


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request that was read."""

    request: Request
    task: TaskName
    body: TypedBody

    @property
    def options(self) -> TypedOptions:
        return self.body.options

    @property
    def state(self) -> ServerState:
        return server_state(self.request)

    @cached_property
    def adapter(self) -> str | None:
        return adapter_named(self.state, self.options.model)

    @cached_property
    def sampling(self) -> TopSampling | None:
        return sampling_of(self.options)

    @cached_property
    def builds(self) -> Sequence[BuildQuestion]:
        builds, most = questions_of(self.options, self.sampling), self.state.options.max_prompts
        if len(builds) > most:
            raise ApiError(
                400,
                f"there are {len(builds)} prompts, wanted at most {most} in one request",
                code="too_many_prompts",
                param="prompts",
            )
        return builds

    @property
    def is_list(self) -> bool:
        """Whether answers are given as a list: those of `prompts`, be it only one."""
        return isinstance(self.options, GenerateOptions) and self.options.prompts is not None

    def reserve(self, place: int) -> Reservation:
        """A place for one of the questions; the image counts for the first of them."""
        answering, first = self.state.answering, place == 0
        return answering.reserve(
            client_of(self.request), self.body.size if first else 0, int(first)
        )

    async def image(self) -> StoredImage:
        """The image, read; ApiError where it cannot be, or is not kept any more."""
        answering, sent = self.state.answering, self.body.image
        if isinstance(sent, ImageReference):
            if (stored := answering.images.get(sent.id)) is None:
                raise ApiError(
                    404,
                    f"the image {sent.id[:60]!r} is not known, or not any more; send it again",
                    type="not_found_error",
                    code="image_not_found",
                    param="image",
                )
            return stored
        try:
            return await answering.image(await answering.in_worker(self.body.encoded))
        except ImageError as error:
            raise ApiError(400, str(error), code="image_unreadable", param="image") from None

    async def questions(self) -> list[Question]:
        """The questions, checked; ApiError that names the one that cannot be asked."""
        return [await self._question(place) for place in range(len(self.builds))]

    async def _question(self, place: int) -> Question:
        try:
            return await self.state.answering.question(self.builds[place], self.adapter)
        except (PromptError, OptionError) as error:
            if not self.is_list:
                raise
            told, name = as_api_error(error), f"prompts[{place}]"
            raise ApiError(told.status, f"{name}: {error}", code=told.code, param=name) from None

    def style(self, image: StoredImage, preprocess_seconds: float) -> AnswerStyle:
        """What the answer is to look like."""
        about = AboutImage(
            id=request_id_of(self.request),
            model=self.adapter or self.state.model_id,
            image=ImageInfo(image.id, image.batch.width, image.batch.height),
        )
        seed = None if self.sampling is None else self.sampling.seed
        style = AnswerStyle(
            task=self.task, about=about, preprocess_seconds=preprocess_seconds, seed=seed
        )
        if not isinstance(self.options, ShownObjects):
            return style
        shown = self.options
        return dataclasses.replace(
            style, min_confidence=shown.min_confidence, masks=shown.masks, format=shown.format
        )

    def events(
        self, questions: Sequence[Question], image: StoredImage, places: Sequence[Reservation]
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of all answers, as they come."""
        most, wanted = self.state.options.timeout, self.options.timeout
        return merged(
            [
                self.state.answering.events(
                    question,
                    image.batch,
                    place,
                    timeout=most if wanted is None else min(most, wanted),
                    adapter=self.adapter,
                    client=client_of(self.request),
                    supersede=self.options.supersede,
                    request_id=request_id_of(self.request),
                    stream_objects=self.options.stream,
                )
                for question, place in zip(questions, places, strict=True)
            ]
        )


ENDPOINTS = (
    TypedEndpoint("caption", CaptionOptions),
    TypedEndpoint("ask", AskOptions),
    TypedEndpoint("ocr", OcrOptions),
    TypedEndpoint("detect", DetectOptions),
    TypedEndpoint("segment", SegmentOptions),
    TypedEndpoint("classify", ClassifyOptions),
    TypedEndpoint("generate", GenerateOptions),
)


def typed_routes() -> list[Route]:
    """The endpoints of all tasks."""
    return [Route(one.path, one.respond, methods=["POST"], name=one.task) for one in ENDPOINTS]
