"""The options of a chat completion: what is refused, and what the rest means for an answer.

Knows OpenAI's and vLLM's options. Knows nothing of messages.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.serve.chat_wire import ChatRequest, PaliGemmaOptions, StructuredOutputs
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.json_answer import JsonForm, json_form

_SEED_BITS = 53  # of a seed that is drawn: every client's numbers hold it exactly
_SEEDS = 2**64
_SINGLE = "this model answers a single prompt about an image in plain words"


@dataclass(frozen=True)
class ChatOptions:
    """How a chat completion is answered.

    `max_tokens` None is as many as an answer of PaliGemma has by default; `sampling` None the most
    likely token; `top_logprobs` None no log-probabilities at all.
    """

    max_tokens: int | None
    sampling: TopSampling | None
    grammar: Grammar | None
    json: JsonForm | None
    objects: ObjectOptions
    stop: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    min_confidence: float
    timeout: float | None
    supersede: str | None
    notes: tuple[str, ...]


def read_options(body: ChatRequest) -> ChatOptions:
    """What the options mean; ApiError 400 for one that would not be honoured."""
    _refuse_unsupported(body)
    own = body.paligemma or PaliGemmaOptions()
    form, held_to = json_form(body.response_format), _structured(body.structured_outputs)
    if form is not None and held_to is not None:
        raise _refused("structured_outputs", "is given beside response_format; leave one out")
    stream = bool(body.stream)
    if body.stream_options is not None and not stream:
        raise _refused("stream_options", "is given without stream; leave it out, or stream")
    return ChatOptions(
        max_tokens=_max_tokens(body),
        sampling=_sampling(body),
        grammar=held_to if form is None else form.grammar,
        json=form,
        objects=_objects(own),
        stop=_stop(body.stop),
        top_logprobs=_top_logprobs(body),
        stream=stream,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        min_confidence=own.min_confidence,
        timeout=own.timeout,
        supersede=own.supersede,
        notes=_unread(body),
    )


def _refuse_unsupported(body: ChatRequest) -> None:
    """ApiError for what would change the answer and is not there."""
    if body.n not in (None, 1):
        raise _refused("n", f"is {body.n}, wanted 1: one answer for each request")
    for name in ("tools", "functions", "audio", "web_search_options"):
        if getattr(body, name):
            raise _refused(name, f"cannot be used: {_SINGLE}")
    for name in ("guided_choice", "guided_regex", "guided_json", "guided_grammar"):
        if getattr(body, name) is not None:
            raise _refused(name, "is an older name, use structured_outputs with choice or regex")
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none", "auto"):
            raise _refused(name, f"cannot be used: {_SINGLE}")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise _refused(name, "cannot be used, wanted 0")
    if body.repetition_penalty not in (None, 1):
        raise _refused("repetition_penalty", "cannot be used, wanted 1")
    if body.logit_bias:
        raise _refused(
            "logit_bias", "cannot be used; structured_outputs holds answers to a set or a pattern"
        )
    if set(body.modalities or ()) - {"text"}:
        raise _refused("modalities", "holds another than text, wanted ['text']")


def _max_tokens(body: ChatRequest) -> int | None:
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise _refused(
            "max_tokens", f"is {old} and max_completion_tokens is {new}; leave one of them out"
        )
    return new if new is not None else old


def _sampling(body: ChatRequest) -> TopSampling | None:
    """Random choice where there is a temperature; without a seed each answer has its own."""
    if not body.temperature:
        return None
    seed = secrets.randbits(_SEED_BITS) if body.seed is None else body.seed % _SEEDS
    with _naming("temperature"):
        return TopSampling(
            temperature=body.temperature,
            top_k=max(body.top_k or 0, 0),  # vLLM's -1 is no limit too
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=seed,
        )


def _unread(body: ChatRequest) -> tuple[str, ...]:
    if body.temperature or (body.top_p in (None, 1) and body.top_k in (None, 0, -1)):
        return ()
    return ("top_p and top_k were not read: without a temperature the likeliest token is chosen",)


def _structured(outputs: StructuredOutputs | None) -> Grammar | None:
    if outputs is None:
        return None
    for name in ("json", "grammar", "json_object", "structural_tag"):
        if getattr(outputs, name):
            raise _refused(
                f"structured_outputs.{name}", "cannot be used, wanted a choice or a regex"
            )
    if outputs.choice is not None and outputs.regex is not None:
        raise _refused("structured_outputs", "has a choice and a regex, wanted one of them")
    if outputs.choice is not None:
        with _naming("structured_outputs.choice"):
            return Choices.of(outputs.choice)
    if outputs.regex is not None:
        with _naming("structured_outputs.regex"):
            return Regex(outputs.regex)
    return None


def _objects(own: PaliGemmaOptions) -> ObjectOptions:
    with _naming("paligemma"):
        return ObjectOptions(constrained=own.constrained, labels=own.label_set, classes=own.classes)


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in texts:
        raise _refused("stop", "holds an empty text, wanted texts that end the answer")
    return texts


def _top_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise _refused("top_logprobs", "is given without logprobs; set logprobs to true")
    return None


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """Let an error of an option name the field on the wire."""
    try:
        yield
    except OptionError as error:
        raise ApiError(400, f"{param}: {error}", code="option_invalid", param=param) from None


def _refused(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param} {problem}", code="unsupported_value", param=param)
