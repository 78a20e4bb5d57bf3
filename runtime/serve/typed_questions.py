"""The fields of a typed request as questions to the model: one, or one for each prompt.

Knows tasks and their options. Knows nothing of HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TypeAlias

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.generation.task_request import (
    choice_request,
    objects_request,
    task_request,
    words_request,
)
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.scheduling.job import Question
from paligemma_edge.runtime.serve.typed_wire import (
    AskOptions,
    CaptionOptions,
    ClassifyOptions,
    DetectOptions,
    GeneratedOptions,
    GenerateOptions,
    OcrOptions,
    SegmentOptions,
    ShownObjects,
    TypedOptions,
)
from paligemma_edge.runtime.text.tasks import Task

BuildQuestion: TypeAlias = Callable[[Pipeline], Question]
_SEED_BITS = 53  # which every client's numbers hold exactly


def sampling_of(options: TypedOptions) -> TopSampling | None:
    """How tokens are drawn, with a new seed where none was given; None is the most likely token."""
    if not isinstance(options, GenerateOptions) or options.temperature == 0:
        return None
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    return TopSampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=seed
    )


def questions_of(
    options: TypedOptions, sampling: TopSampling | None = None
) -> Sequence[BuildQuestion]:
    """What is asked, in order; each raises PromptError or OptionError where it cannot be.

    Args:
        options: the fields of a request.
        sampling: from `sampling_of`.

    Raises:
        OptionError: `format` is one of objects, and the prompt asks for words.
    """
    match options:
        case ClassifyOptions(prompt=prompt, choices=choices):
            return (lambda pipeline: choice_request(pipeline, prompt, choices, 1),)
        case GenerateOptions():
            return _prompts(options, sampling)
        case GeneratedOptions():
            return (_task(_task_of(options), options),)
    raise AssertionError(options)


def _task_of(options: GeneratedOptions) -> Callable[[], Task]:
    match options:
        case CaptionOptions(language=language):
            return lambda: Task.caption(language)
        case AskOptions(question=question, language=language):
            return lambda: Task.ask(question, language)
        case OcrOptions():
            return Task.ocr
        case DetectOptions(labels=labels):
            return lambda: Task.detect(labels)
        case SegmentOptions(labels=labels):
            return lambda: Task.segment(labels)
    raise AssertionError(options)


def _task(task: Callable[[], Task], options: GeneratedOptions) -> BuildQuestion:
    settings = GenerationOptions(max_new_tokens=options.max_new_tokens)
    if isinstance(options, ShownObjects):
        objects = _object_options(options)
        return lambda pipeline: objects_request(pipeline, task(), 1, settings, objects)
    return lambda pipeline: words_request(pipeline, task(), 1, settings)


def _prompts(options: GenerateOptions, sampling: TopSampling | None) -> Sequence[BuildQuestion]:
    prompts = options.prompts or (options.prompt or "",)
    settings = GenerationOptions(max_new_tokens=options.max_new_tokens, sampling=sampling)
    objects = _object_options(options)
    if options.format != "json" and Task.of(prompts[0]).labels is None:
        raise OptionError(
            f"format is {options.format!r}, which holds objects, and the prompt asks for words; "
            "begin it with detect or segment, or leave format out"
        )
    return [
        lambda pipeline, prompt=prompt: task_request(  # type: ignore[misc]
            pipeline, prompt, settings, objects
        )
        for prompt in prompts
    ]


def _object_options(options: ShownObjects) -> ObjectOptions:
    return ObjectOptions(
        constrained=options.constrained, labels=options.label_set, classes=options.classes
    )
