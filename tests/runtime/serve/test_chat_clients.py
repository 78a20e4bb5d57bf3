"""Clients of chat completions that are many, late, or gone; and adapters, which are models."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.add_to_bundle import add_adapter
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.logits import Logits
from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.reservation import Reservation
from paligemma_edge.runtime.scheduling.scheduler import Scheduler
from tests.conftest import MakeCheckpoint
from tests.helpers.adapters import train
from tests.helpers.chat import data_url, openai_client, url_of
from tests.helpers.serving import SECONDS, Running, running_server

PATH = "/v1/chat/completions"


@dataclass
class Gate:
    """Holds the engine in its first step, until it is opened."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    steps: int = 0  # since it was opened


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, step = Gate(), Stepper.step

    def held(stepper: Stepper, tokens: Sequence[int]) -> Logits:
        gate.reached.set()
        assert gate.opened.wait(SECONDS)
        gate.steps += 1
        return step(stepper, tokens)

    monkeypatch.setattr(Stepper, "step", held)
    yield gate
    gate.opened.set()


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the scheduler was told that nobody waits for a job."""
    told, cancel = threading.Event(), Scheduler.cancel

    def noted(scheduler: Scheduler, job: Job) -> None:
        cancel(scheduler, job)
        told.set()

    monkeypatch.setattr(Scheduler, "cancel", noted)
    return told


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released each time that the scheduler was given a job."""
    given, submit = threading.Semaphore(0), Scheduler.submit

    def noted(scheduler: Scheduler, job: Job, reservation: Reservation) -> None:
        submit(scheduler, job, reservation)
        given.release()

    monkeypatch.setattr(Scheduler, "submit", noted)
    return given


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def request(image: Path, prompt: str = "caption en", **fields: object) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": data_url(image)}},
    ]
    return {"messages": [{"role": "user", "content": parts}], **fields}


def connection(running: Running, body: dict[str, Any]) -> http.client.HTTPConnection:
    """One that has sent its request."""
    one = http.client.HTTPConnection("127.0.0.1", running.address.port, timeout=SECONDS)
    headers = {"content-type": "application/json"}
    one.request("POST", PATH, json.dumps(body), headers)
    return one


def post(running: Running, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url_of(running)}{PATH}", json=body, timeout=SECONDS)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_step(
    shapes_bundle: Path, image: Path, gate: Gate, cancelled: threading.Event, stream: bool
) -> None:
    with running_server(shapes_bundle, slots=1) as running:
        leaving = connection(running, request(image, stream=stream))
        assert gate.reached.wait(SECONDS)
        leaving.close()
        assert cancelled.wait(SECONDS)
        gate.opened.set()
        assert post(running, request(image, max_tokens=1)).status_code == 200
        assert gate.steps <= 2  # the one that was held; with a prefill graph one of the prompt


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_gives_its_place_back(
    shapes_bundle: Path,
    image: Path,
    gate: Gate,
    cancelled: threading.Event,
    waiting: threading.Semaphore,
    stream: bool,
) -> None:
    with (
        running_server(shapes_bundle, slots=1, max_waiting=1) as running,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(post, running, request(image))
        assert gate.reached.wait(SECONDS)
        assert waiting.acquire(timeout=SECONDS)
        leaving = connection(running, request(image, stream=stream))
        assert waiting.acquire(timeout=SECONDS)
        leaving.close()
        assert cancelled.wait(SECONDS)
        gate.opened.set()
        assert first.result().status_code == 200
        assert post(running, request(image)).status_code == 200


def test_refused_requests_give_their_places_back(shapes_bundle: Path, image: Path) -> None:
    bad = request(image)
    bad["messages"][0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    refused = [
        bad,
        request(image, "detect ;"),
        request(image, "word " * 600),
        request(image, structured_outputs={"regex": "["}),
        request(image, structured_outputs={"regex": "["}, stream=True),
        {**bad, "stream": True},
    ]
    with running_server(shapes_bundle, slots=1, max_waiting=1) as running:
        for body in refused:
            assert post(running, body).status_code == 400
        assert post(running, request(image)).status_code == 200


def test_a_full_queue_is_an_error_of_openai_pythons(
    shapes_bundle: Path, image: Path, gate: Gate, waiting: threading.Semaphore
) -> None:
    with (
        running_server(shapes_bundle, slots=1, max_waiting=1) as running,
        ThreadPoolExecutor() as pool,
        openai_client(running) as one,
    ):
        answers = [pool.submit(post, running, request(image))]
        assert gate.reached.wait(SECONDS)
        answers.append(pool.submit(post, running, request(image)))
        for _ in answers:
            assert waiting.acquire(timeout=SECONDS)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as full:
                one.chat.completions.create(model="shapes", **request(image, stream=stream))
            assert (full.value.status_code, full.value.code) == (503, "queue_full")
            assert int(full.value.response.headers["retry-after"]) > 0
        gate.opened.set()
        assert [one.result().status_code for one in answers] == [200, 200]
        with openai_client(running, retries=3) as patient:
            assert patient.chat.completions.create(model="shapes", **request(image))


def test_a_client_that_has_its_share_is_told_so(
    shapes_bundle: Path, image: Path, gate: Gate, waiting: threading.Semaphore
) -> None:
    limits: dict[str, Any] = {"slots": 1, "max_waiting": 8, "max_waiting_per_client": 1}
    with (
        running_server(shapes_bundle, **limits) as running,
        ThreadPoolExecutor() as pool,
        openai_client(running) as one,
    ):
        answers = [pool.submit(post, running, request(image))]
        assert gate.reached.wait(SECONDS)
        answers.append(pool.submit(post, running, request(image)))
        for _ in answers:
            assert waiting.acquire(timeout=SECONDS)
        with pytest.raises(openai.RateLimitError) as full:
            one.chat.completions.create(model="shapes", **request(image))
        assert full.value.code == "queue_full"
        gate.opened.set()
        assert [one.result().status_code for one in answers] == [200, 200]


def test_a_newer_request_takes_the_place_of_one_that_waits(
    shapes_bundle: Path, image: Path, gate: Gate, waiting: threading.Semaphore
) -> None:
    newest = request(image, paligemma={"supersede": "cam1"})
    with (
        running_server(shapes_bundle, slots=1) as running,
        ThreadPoolExecutor() as pool,
        openai_client(running, retries=5) as one,
    ):
        running_one = pool.submit(post, running, request(image))
        assert gate.reached.wait(SECONDS)
        assert waiting.acquire(timeout=SECONDS)
        old = pool.submit(lambda: one.chat.completions.create(**_for_openai(newest)))
        assert waiting.acquire(timeout=SECONDS)
        new = pool.submit(post, running, newest)
        assert waiting.acquire(timeout=SECONDS)
        gate.opened.set()
        with pytest.raises(openai.ConflictError) as superseded:  # and not one try more
            old.result(timeout=SECONDS)
        assert superseded.value.code == "superseded"
        assert [running_one.result().status_code, new.result().status_code] == [200, 200]


def _for_openai(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "shapes",
        "messages": body["messages"],
        "extra_body": {"paligemma": body["paligemma"]},
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_has_passed_is_not_tried_again(
    shapes_bundle: Path, image: Path, stream: bool
) -> None:
    with running_server(shapes_bundle) as running, openai_client(running, retries=5) as one:
        body = request(image, paligemma={"timeout": 1e-9})
        with pytest.raises(openai.APIError) as late:
            list(one.chat.completions.create(stream=stream, **_for_openai(body)))
        assert (late.value.code, late.value.type) == ("deadline", "timeout_error")


def test_many_clients_get_the_answers_of_the_model_alone(
    shapes_bundle: Path, shapes_model: PaliGemma, shapes_images: Path
) -> None:
    prompts = ["caption en", "detect circle ; star", "segment star", "answer en how many?"]
    asked = [
        (shapes_images / f"{number:02}.png", prompt) for number in range(3) for prompt in prompts
    ]
    with (
        running_server(shapes_bundle, slots=3) as running,
        ThreadPoolExecutor(len(asked)) as pool,
    ):
        answers = list(pool.map(lambda one: post(running, request(*one)).json(), asked))
    assert [one["choices"][0]["message"]["content"] for one in answers] == [
        shapes_model.run(*one).text for one in asked
    ]


def test_an_adapter_is_a_model(
    make_checkpoint: MakeCheckpoint, image: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(text={"hidden_size": 64, "intermediate_size": 96})
    bundle = tmp_path / "mix.bundle"
    export(checkpoint, bundle)
    adapter = train(checkpoint, tmp_path / "cats", target_modules="all-linear")
    add_adapter(bundle, adapter, "cats")
    model = PaliGemma(bundle)
    alone = {
        "mix": model.run(image, "caption en", max_new_tokens=6).text,
        "cats": model.run(image, "caption en", max_new_tokens=6, adapter="cats").text,
    }
    assert alone["mix"] != alone["cats"]
    with running_server(bundle) as running, openai_client(running) as one:
        models = {listed.id: listed.model_extra or {} for listed in one.models.list()}
        assert list(models) == ["mix", "cats"]
        assert (models["mix"]["parent"], models["cats"]["parent"]) == (None, "mix")
        assert one.models.retrieve("cats").id == "cats"
        for name, text in alone.items():
            answer = one.chat.completions.create(model=name, max_tokens=6, **request(image))
            assert answer.model == name
            assert answer.choices[0].message.content == text
