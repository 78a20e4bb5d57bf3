"""Chat completions as they are on the wire: OpenAI's names, vLLM's where OpenAI has none.

Knows names, types and bounds. What a request means is decided elsewhere; fields that are not here
are ignored, as OpenAI-compatible servers do.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from paligemma_edge.runtime.results.generation import FinishReason

MAX_STOP = 4
MAX_TOP_LOGPROBS = 20

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class ImageUrl(Struct):
    """An image as a data: URI in base64; addresses are not fetched."""

    url: str


class ContentPart(Struct):
    """A text or an image; of other kinds the type alone is read."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class ChatMessage(Struct):
    """One message of the conversation."""

    role: Role
    content: str | list[ContentPart] | None = None


class StreamOptions(Struct):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class StructuredOutputs(Struct):
    """What the answer is held to: one of `choice`, or a text that `regex` matches as a whole."""

    choice: list[str] | None = None
    regex: str | None = None
    json: Any = None
    grammar: Any = None
    json_object: Any = None
    structural_tag: Any = None


class JsonSchema(Struct):
    """A JSON schema with a name."""

    schema: dict[str, Any] | None = None
    name: str | None = None


class ResponseFormat(Struct):
    """Plain text, or JSON of a schema that has one property."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class PaliGemmaOptions(Struct, forbid_unknown_fields=True):
    """What OpenAI's API has no field for.

    Args:
        constrained: hold `detect` and `segment` to the form of their answers.
        label_set: "any" leaves labels to the model, "asked" allows those of the prompt alone.
        classes: what class ids count; by default the labels of the prompt.
        min_confidence: leaves out objects that the model is less sure of.
        timeout: seconds until an answer is of use.
        supersede: a waiting request of this name makes room for this one.
    """

    constrained: bool = True
    label_set: Literal["any", "asked"] = "any"
    classes: list[str] | None = None
    min_confidence: Share = 0.0
    timeout: Annotated[float, Meta(gt=0)] | None = None
    supersede: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class ChatRequest(Struct):
    """A request for one answer about images."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: Int64 | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOP)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    paligemma: PaliGemmaOptions | None = None
    # Each of these is refused where it would change the answer.
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    guided_choice: Any = None
    guided_regex: Any = None
    guided_json: Any = None
    guided_grammar: Any = None


class TopLogProb(Struct):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogProbs(TopLogProb):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TopLogProb]


class LogProbs(Struct):
    """Of each token of the answer, its end left out."""

    content: list[TokenLogProbs]


class ImageInfo(Struct):
    """An image that was asked about; the typed endpoints take its id."""

    id: str
    width: int
    height: int


class PaliGemmaAnswer(Struct, omit_defaults=True):
    """What OpenAI's API has no field for.

    Args:
        images: what the prompt was about.
        confidence: of the answer, 0..1.
        timings: seconds of each stage, and of the wait for a slot.
        notes: what was not read, and what else to know.
        objects: of `detect` and `segment`, as `to_dict` of a result has them.
        classes: what the class ids of objects count.
        seed: that sampling was done with.
    """

    images: list[ImageInfo]
    confidence: float
    timings: dict[str, float]
    notes: list[str]
    objects: list[dict[str, Any]] | UnsetType = UNSET
    classes: list[str] | UnsetType = UNSET
    seed: int | UnsetType = UNSET


class Message(Struct):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None
    paligemma: PaliGemmaAnswer


class Choice(Struct):
    """The one answer."""

    index: int
    message: Message
    logprobs: LogProbs | None
    finish_reason: FinishReason


class PromptTokensDetails(Struct):
    """Of the prompt's tokens, those of its images."""

    image_tokens: int


class Usage(Struct):
    """Tokens of images and prompt, and of the answer, its end included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(Struct):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(Struct):
    """What an answer grows by."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct):
    """The one answer, as far as it grows."""

    index: int
    delta: Delta
    logprobs: LogProbs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Struct):
    """A part of a streamed answer; `paligemma` comes with the last part of the text.

    `usage` is there where `include_usage` asks for it: null until a chunk without choices.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    paligemma: PaliGemmaAnswer | UnsetType = UNSET


class Model(Struct):
    """The bundle's model, or one of its adapters, whose `parent` that is."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(Struct):
    """All that `model` may name."""

    object: Literal["list"]
    data: list[Model]
