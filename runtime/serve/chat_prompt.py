"""The messages of a conversation as what a PaliGemma can be asked: one prompt about images.

The model was trained with single turns, so the last user message is the question and nothing is
joined to it. What was not read is told. Knows messages. Knows nothing of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma_edge.runtime.serve.chat_wire import ChatMessage, ContentPart
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.text.prompt_prefix import split_prefix

_PARTS = ("text", "image_url")
# The first words of the prompts that PaliGemma was trained with.
_TASK = re.compile(
    r"\s*((cap|caption|describe|answer|question)\s+[a-z]{2}|ocr|detect|segment)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class SentImage:
    """An image as it was sent, and where in the request."""

    url: str
    param: str


@dataclass(frozen=True)
class ChatPrompt:
    """One prompt about images, and what of the conversation was not read."""

    text: str
    images: tuple[SentImage, ...]
    notes: tuple[str, ...]


def read_messages(
    messages: Sequence[ChatMessage],
    *,
    max_images: int,
    default_task: str | None = None,
    strict: bool = False,
) -> ChatPrompt:
    """The last text of the last user message, about its images or those of the nearest before it.

    Args:
        messages: at least one.
        max_images: that a prompt may be about.
        default_task: such as "answer en", put before a text that begins with no task's word.
        strict: refuse what would not be read.

    Returns:
        The prompt as it was typed.

    Raises:
        ApiError: 400; there is no prompt or no image, or a part that cannot be read.
    """
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    if not places:
        raise _refused("there is no user message, wanted a prompt in one", "prompt_required")
    asked = places[-1]
    texts = _texts(messages[asked], asked)
    images, of = _nearest_images(messages, places)
    if not images:
        raise _refused(
            "no user message has an image, and a PaliGemma answers about images; add a part "
            '{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}}',
            "image_required",
        )
    if len(images) > max_images:
        raise _refused(
            f"there are {len(images)} images, wanted at most {max_images}",
            "too_many_images",
            f"messages[{of}].content",
        )
    notes = _unread(messages, asked, len(texts), of)
    if strict and notes:
        raise _refused(f"{notes[0]}; leave it out, or start without --strict-chat", "strict_chat")
    return ChatPrompt(_prompt(texts, asked, default_task), tuple(images), tuple(notes))


def _texts(message: ChatMessage, place: int) -> list[str]:
    """The texts of the message that asks."""
    if isinstance(message.content, str):
        return [message.content]
    texts = []
    for number, part in enumerate(message.content or ()):
        param = f"messages[{place}].content[{number}]"
        if part.type not in _PARTS:
            raise _refused(
                f"{param} is of the type {part.type!r}, wanted text or image_url",
                "content_type_unsupported",
                f"{param}.type",
            )
        if part.type == "text":
            if part.text is None:
                raise _refused(f"{param} has no text", "text_required", f"{param}.text")
            texts.append(part.text)
    return texts


def _prompt(texts: Sequence[str], place: int, default_task: str | None) -> str:
    text = texts[-1] if texts else ""
    if default_task is not None and not _TASK.match(split_prefix(text)[1]):
        return f"{default_task} {text}" if text.strip() else default_task
    if not text.strip():
        raise _refused(
            'the last user message has no text, wanted a prompt such as "caption en"',
            "prompt_required",
            f"messages[{place}].content",
        )
    return text


def _nearest_images(
    messages: Sequence[ChatMessage], places: Sequence[int]
) -> tuple[list[SentImage], int]:
    """The images of the last user message that has any, and its place."""
    for place in reversed(places):
        content = messages[place].content
        parts = () if content is None or isinstance(content, str) else content
        images = [
            _image(part, f"messages[{place}].content[{number}].image_url")
            for number, part in enumerate(parts)
            if part.type == "image_url"
        ]
        if images:
            return images, place
    return [], places[-1]


def _image(part: ContentPart, param: str) -> SentImage:
    if part.image_url is None:
        raise _refused(f"{param} is missing", "image_required", param)
    if isinstance(part.image_url, str):
        return SentImage(part.image_url, param)
    return SentImage(part.image_url.url, f"{param}.url")


def _unread(messages: Sequence[ChatMessage], asked: int, texts: int, of_images: int) -> list[str]:
    """What the model is not told, in sentences."""
    notes = []
    if any(message.role in ("system", "developer") for message in messages):
        notes.append("the system message was not read: this model answers a single prompt")
    talk = [
        place
        for place, message in enumerate(messages)
        if place != asked and message.role not in ("system", "developer")
    ]
    if talk:
        but = " but for its images" if of_images != asked else ""
        notes.append(
            f"{_count(len(talk), 'other message')} of the conversation "
            f"{'was' if len(talk) == 1 else 'were'} not read{but}: this model answers a single "
            "prompt, the last user message"
        )
    if texts > 1:
        notes.append(
            f"{_count(texts - 1, 'text')} before the last one of the message "
            f"{'was' if texts == 2 else 'were'} not read: this model answers a single prompt"
        )
    return notes


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _refused(message: str, code: str, param: str = "messages") -> ApiError:
    return ApiError(400, message, code=code, param=param)
