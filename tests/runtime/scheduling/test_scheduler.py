"""Jobs of many clients over one model: the same answers, in turn, and no slot is lost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import ObjectResult, OptionError, PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.add_to_bundle import add_adapter
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.task_request import task_request
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.results.formats import to_dict
from paligemma_edge.runtime.results.result import ChoiceResult
from paligemma_edge.runtime.scheduling.active_job import CUT_BY_DEADLINE
from paligemma_edge.runtime.scheduling.errors import (
    CancelledError,
    ClosingError,
    QueueFullError,
    QueueTimeoutError,
    SupersededError,
)
from paligemma_edge.runtime.scheduling.events import (
    Event,
    Finished,
    ObjectFound,
    Started,
    TokenGenerated,
)
from paligemma_edge.runtime.scheduling.reservation import QueueLimits
from paligemma_edge.runtime.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.conftest import MakeCheckpoint
from tests.helpers.adapters import train
from tests.helpers.jobs import LONG, Heard, choice, submitted

SLOTS = 3
ADAPTED: dict[str, dict[str, Any]] = {
    "seeing": {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
    "saying": {"target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj)"},
}
PROMPTS = ("caption en", "detect star ; circle ; square", "segment star", "ocr", "answer en how?")


@pytest.fixture(scope="module")
def loaded(shapes_bundle: Path) -> LoadedModel:
    return load_model(shapes_bundle, "cpu", max_batch_size=SLOTS, max_length=300)


@pytest.fixture
def start(loaded: LoadedModel) -> Iterator[Callable[..., Scheduler]]:
    """Start a scheduler; whatever a test leaves in it must not keep it from ending."""
    started: list[Scheduler] = []

    def start(limits: SchedulerLimits | None = None, model: LoadedModel = loaded) -> Scheduler:
        scheduler = Scheduler(model, limits or SchedulerLimits())
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.close()
        assert scheduler.running == 0


@pytest.fixture
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def test_answers_of_many_jobs_at_once_are_those_of_the_model_alone(
    start: Callable[..., Scheduler], shapes_model: PaliGemma, shapes_images: Path
) -> None:
    scheduler = start()
    images = sorted(shapes_images.glob("[0-9]*.png"))[:4]
    asked = [(image, prompt) for image in images for prompt in PROMPTS]
    heard = [submitted(scheduler, *one, client=str(n % 3))[1] for n, one in enumerate(asked)]
    for (image, prompt), one in zip(asked, heard, strict=True):
        expected, actual = shapes_model.run(image, prompt), one.finished
        assert str(actual.result) == expected.text == one.text
        assert actual.result.log_prob == pytest.approx(expected.log_prob, abs=1e-5)
        if isinstance(expected, ObjectResult):
            assert isinstance(actual.result, ObjectResult)
            assert [o.xyxy for o in actual.result] == [o.xyxy for o in expected]
        generation = actual.generation
        assert generation is not None
        assert actual.completion_tokens == len(generation.token_ids)
        assert actual.prompt_tokens == actual.image_tokens + len(
            shapes_model._loaded.encoder.encode(prompt, 1)
        )
        assert set(actual.seconds) >= {"prefill"}


def test_a_choice_among_running_answers_has_the_probabilities_of_the_model_alone(
    start: Callable[..., Scheduler], shapes_model: PaliGemma, image: Path
) -> None:
    scheduler = start()
    others = [submitted(scheduler, image, "segment star ; circle")[1] for _ in range(SLOTS - 1)]
    _, heard = submitted(scheduler, image, choice(scheduler, "ocr", "yes", "no", "not at all"))
    actual = heard.finished.result
    assert isinstance(actual, ChoiceResult)
    expected = shapes_model.classify(image, "ocr", ["yes", "no", "not at all"])
    assert actual.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
    text = shapes_model.segment(image, "star ; circle").text
    assert [other.finished.result.text for other in others] == [text] * len(others)


def test_the_first_event_is_the_start_and_the_last_the_end(
    start: Callable[..., Scheduler], image: Path
) -> None:
    _, heard = submitted(start(), image, "caption en")
    finished = heard.finished
    assert isinstance(heard.events[0], Started)
    assert heard.events[-1] is finished
    tokens = [one for one in heard.events if isinstance(one, TokenGenerated)]
    assert finished.generation is not None
    assert tuple(one.token_id for one in tokens) == finished.generation.token_ids
    assert tuple(one.log_prob for one in tokens) == finished.generation.log_probs


@pytest.mark.parametrize("prompt", ["detect star ; circle ; square", "segment star ; circle"])
def test_objects_are_told_as_they_are_complete_and_are_those_of_the_result(
    start: Callable[..., Scheduler], shapes_images: Path, prompt: str
) -> None:
    scheduler, most = start(), 0
    for image in sorted(shapes_images.glob("[0-9]*.png"))[:4]:
        _, heard = submitted(scheduler, image, prompt, stream_objects=True)
        result = heard.finished.result
        assert isinstance(result, ObjectResult)
        told = [one for one in heard.events if isinstance(one, ObjectFound)]
        assert [one.number for one in told] == list(range(len(result)))
        assert list(map(to_dict, (one.detection for one in told))) == list(map(to_dict, result))
        most = max(most, len(result))
        if len(told) > 1:
            later = heard.events[heard.events.index(told[0]) :]
            assert any(isinstance(one, TokenGenerated) for one in later), "all came at the end"
    assert most > 1, "no image has several objects"


def test_a_stop_text_ends_the_answer_before_it(
    start: Callable[..., Scheduler], shapes_model: PaliGemma, image: Path
) -> None:
    whole = shapes_model.caption(image).text
    stop = whole.split()[1]
    _, heard = submitted(start(), image, "caption en", stop=("nowhere", stop))
    result = heard.finished.result
    assert result.text == heard.text == whole[: whole.index(stop)]
    assert not isinstance(result, ChoiceResult)
    assert result.finish_reason == "stop"


def test_the_most_likely_tokens_of_each_place_can_be_had(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()
    options = GenerationOptions(top_log_probs=5)
    question = task_request(scheduler.model.pipeline, "caption en", options)
    _, heard = submitted(scheduler, image, question)
    generation = heard.finished.generation
    assert generation is not None
    assert len(generation.top_log_probs) == len(generation.token_ids)
    for token, log_prob, top in zip(
        generation.token_ids, generation.log_probs, generation.top_log_probs, strict=True
    ):
        assert len(top) == 5
        assert top[0].token_id == token
        assert top[0].log_prob == pytest.approx(log_prob, abs=1e-9)
        assert sorted(top, key=lambda one: -one.log_prob) == list(top)


def test_a_job_that_is_cancelled_while_it_runs_leaves_its_slot_within_a_step(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()

    def leave(event: Event) -> None:
        if isinstance(event, TokenGenerated):
            scheduler.cancel(job)

    job, heard = submitted(scheduler, image, "segment star ; circle", leave)
    assert isinstance(heard.error, CancelledError)
    assert sum(isinstance(one, TokenGenerated) for one in heard.events) <= 2
    assert scheduler.drain(LONG)


def test_a_prefill_ends_when_its_job_is_cancelled(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()

    def leave(event: Event) -> None:
        if isinstance(event, Started):
            scheduler.cancel(jobs[0])

    jobs = []
    pipeline, heard = scheduler.model.pipeline, Heard(leave)
    job, other = submitted(scheduler, image, "caption en")
    expected = other.finished.result
    again = dataclasses.replace(
        job, images=pipeline.read_images([image.with_name("01.png")]), listener=heard
    )
    jobs.append(again)
    scheduler.submit(again, scheduler.reserve("", 0))
    assert isinstance(heard.error, CancelledError)
    assert not any(isinstance(one, TokenGenerated) for one in heard.events)
    assert submitted(scheduler, image, "caption en")[1].finished.result == expected


def held(scheduler: Scheduler, image: Path) -> tuple[list[Heard], Callable[[], None]]:
    """Fill all slots with answers whose listeners hold the engine thread until let go."""
    import threading

    gate = threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, TokenGenerated):
            gate.wait(LONG)

    heard = [submitted(scheduler, image, "segment star ; circle", hold)[1] for _ in range(SLOTS)]
    return heard, gate.set


def test_a_waiting_job_can_be_cancelled_superseded_or_too_late(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()
    running, let_go = held(scheduler, image)
    gone, cancelled = submitted(scheduler, image, "ocr", client="a")
    superseding: Any = {"client": "a", "supersede": "camera"}
    both = [submitted(scheduler, image, "ocr", **superseding, request_id="1")[1] for _ in range(2)]
    _, of_another = submitted(scheduler, image, "ocr", client="b", supersede="camera")
    _, newer = submitted(scheduler, image, "caption en", **superseding, request_id="2")
    _, late = submitted(scheduler, image, "ocr", client="c", deadline=time.monotonic())
    scheduler.cancel(gone)
    let_go()
    assert isinstance(cancelled.error, CancelledError)
    assert all(isinstance(one.error, SupersededError) for one in both)
    assert isinstance(late.error, QueueTimeoutError)
    assert of_another.finished.result.text is not None
    assert newer.finished.result.text
    assert [one.finished for one in running]
    assert not any(isinstance(one, Started) for one in cancelled.events + both[0].events)


def test_an_answer_whose_time_is_over_is_cut_and_says_so(
    start: Callable[..., Scheduler], shapes_model: PaliGemma, image: Path
) -> None:
    scheduler = start()

    def pass_time(event: Event) -> None:
        if sum(isinstance(one, TokenGenerated) for one in heard[0].events) == 3:
            object.__setattr__(jobs[0], "deadline", 0)

    heard, jobs = [], []
    running, let_go = held(scheduler, image)
    job, one = submitted(scheduler, image, "segment star ; circle", pass_time)
    heard.append(one)
    jobs.append(job)
    let_go()
    finished = one.finished
    assert finished.completion_tokens == 3
    assert finished.notes == (CUT_BY_DEADLINE,)
    assert not isinstance(finished.result, ChoiceResult)
    assert finished.result.finish_reason == "length"
    assert shapes_model.segment(image, "star ; circle").text.startswith(finished.result.text)
    assert [one.finished for one in running]


def test_a_full_queue_says_so_at_once(start: Callable[..., Scheduler], image: Path) -> None:
    scheduler = start(SchedulerLimits(queue=QueueLimits(jobs=2, jobs_of_client=1)))
    first = scheduler.reserve("a", 1)
    with pytest.raises(QueueFullError) as mine:
        scheduler.reserve("a", 1)
    scheduler.reserve("b", 1)
    with pytest.raises(QueueFullError) as everyones:
        scheduler.reserve("c", 1)
    assert (mine.value.of_client, everyones.value.of_client) == (True, False)
    first.close()
    scheduler.reserve("c", 1).close()


def test_draining_lets_all_end_and_takes_no_more(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()
    heard = [submitted(scheduler, image, "caption en")[1] for _ in range(SLOTS + 2)]
    assert scheduler.drain(LONG)
    assert all(isinstance(one.events[-1], Finished) for one in heard)
    with pytest.raises(ClosingError):
        scheduler.reserve("", 1)
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_closing_ends_what_runs_and_what_waits(
    start: Callable[..., Scheduler], image: Path
) -> None:
    scheduler = start()
    running, let_go = held(scheduler, image)
    _, waiting = submitted(scheduler, image, "caption en")
    scheduler._closed = True
    let_go()
    scheduler.close()
    assert isinstance(waiting.error, ClosingError)
    ends = [one.events[-1] for one in running]
    assert all(not isinstance(end, TokenGenerated | Started) for end in ends)


def test_a_device_that_fails_costs_the_answers_that_run_and_no_more(
    start: Callable[..., Scheduler], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start()
    step, left = Stepper.step, [1]

    def fail_once(stepper: Stepper, tokens: Any) -> Any:  # noqa: ANN401
        if left and left.pop():
            raise DeviceError("out of memory")
        return step(stepper, tokens)

    monkeypatch.setattr(Stepper, "step", fail_once)
    assert isinstance(submitted(scheduler, image, "caption en")[1].error, DeviceError)
    assert submitted(scheduler, image, "caption en")[1].finished.result.text
    assert scheduler.failure is None


def test_a_device_that_fails_again_and_again_ends_the_scheduler(
    start: Callable[..., Scheduler], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start()

    def fail(*_: object) -> Any:  # noqa: ANN401
        raise DeviceError("the GPU is gone")

    monkeypatch.setattr(Engine, "encode", fail)
    errors = []
    for number in range(3):
        job = submitted(scheduler, image.with_name(f"0{number}.png"), "caption en")[1]
        errors.append(job.error)
    assert [str(error) for error in errors] == ["the GPU is gone"] * 3
    scheduler._thread.join()
    assert isinstance(scheduler.failure, DeviceError)
    with pytest.raises(ClosingError):
        scheduler.reserve("", 1)


def test_a_listener_that_fails_takes_no_other_answer_with_it(
    start: Callable[..., Scheduler], image: Path
) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("nobody is there")

    scheduler = start()
    submitted(scheduler, image, "caption en", fail)
    assert submitted(scheduler, image, "caption en")[1].finished.result.text
    assert scheduler.failure is None


def test_slots_must_have_been_planned(shapes_model: PaliGemma) -> None:
    with pytest.raises(OptionError, match="without a plan of its slots"):
        Scheduler(shapes_model._loaded, SchedulerLimits())


def test_jobs_of_several_adapters_are_each_answered_by_their_own(
    start: Callable[..., Scheduler], make_checkpoint: MakeCheckpoint, image: Path, tmp_path: Path
) -> None:
    """One changes what the model makes of an image, the other does not."""
    checkpoint = make_checkpoint(text={"hidden_size": 64, "intermediate_size": 96})
    bundle = tmp_path / "base.bundle"
    export(checkpoint, bundle)
    for seed, (name, modules) in enumerate(ADAPTED.items(), 1):
        add_adapter(bundle, train(checkpoint, tmp_path / name, seed=seed, **modules), name)
    model = PaliGemma(bundle)
    names = [None, *ADAPTED] * 3
    expected = [model.run(image, "caption en", max_new_tokens=6, adapter=n).text for n in names]
    assert len(set(expected)) == 3
    scheduler = start(model=load_model(bundle, "cpu", max_batch_size=SLOTS, max_length=60))
    options = GenerationOptions(max_new_tokens=6)
    heard = [
        submitted(
            scheduler,
            image,
            task_request(scheduler.model.with_adapter(name), "caption en", options),
            adapter=name,
        )[1]
        for name in names
    ]
    assert [one.finished.result.text for one in heard] == expected
