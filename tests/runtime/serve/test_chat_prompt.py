"""What of a conversation is asked, about which images, and what is said to be left out."""

from __future__ import annotations

import pytest

from paligemma_edge.runtime.serve.chat_prompt import ChatPrompt, read_messages
from paligemma_edge.runtime.serve.chat_wire import ChatMessage, ContentPart, ImageUrl
from paligemma_edge.runtime.serve.errors import ApiError

URL = "data:image/png;base64,AAAA"


def text(value: str) -> ContentPart:
    return ContentPart("text", text=value)


def image(url: str = URL) -> ContentPart:
    return ContentPart("image_url", image_url=ImageUrl(url))


def user(*parts: ContentPart) -> ChatMessage:
    return ChatMessage("user", list(parts))


def read(*messages: ChatMessage, task: str | None = None, strict: bool = False) -> ChatPrompt:
    return read_messages(messages, max_images=2, default_task=task, strict=strict)


def refused(*messages: ChatMessage, strict: bool = False) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(*messages, strict=strict)
    assert error.value.status == 400
    return error.value


def test_a_single_turn_is_asked_as_it_is_typed() -> None:
    prompt = read(user(text(" caption en\n"), image()))
    assert prompt.text == " caption en\n"
    assert [(one.url, one.param) for one in prompt.images] == [
        (URL, "messages[0].content[1].image_url.url")
    ]
    assert prompt.notes == ()


def test_the_last_text_is_the_prompt_and_the_others_are_told() -> None:
    prompt = read(user(text("Image 1:"), image(), text("detect cat")))
    assert prompt.text == "detect cat"
    assert len(prompt.notes) == 1
    assert "1 text before the last one" in prompt.notes[0]


def test_a_follow_up_question_is_about_the_image_before() -> None:
    prompt = read(
        ChatMessage("system", "be brief"),
        user(image("data:1"), text("caption en")),
        ChatMessage("assistant", "a cat"),
        user(image("data:2"), text("caption en")),
        ChatMessage("assistant", None),
        ChatMessage("user", "answer en what colour?"),
    )
    assert prompt.text == "answer en what colour?"
    assert [one.url for one in prompt.images] == ["data:2"]
    assert "system message was not read" in prompt.notes[0]
    assert "4 other messages" in prompt.notes[1]
    assert "but for its images" in prompt.notes[1]


def test_an_image_may_be_a_text_alone() -> None:
    prompt = read(user(ContentPart("image_url", image_url=URL), text("ocr")))
    assert prompt.images[0].param == "messages[0].content[0].image_url"


def test_the_answer_to_an_image_after_the_question_is_not_looked_for() -> None:
    error = refused(ChatMessage("user", "ocr"), ChatMessage("assistant", [image()]))
    assert error.code == "image_required"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("what is it?", "answer en what is it?"),
        ("describe the street", "answer en describe the street"),
        ("detection of cats?", "answer en detection of cats?"),
        ("caption en", "caption en"),
        ("<image>ocr", "<image>ocr"),
        ("Detect cat", "Detect cat"),
        ("answer de was ist das?", "answer de was ist das?"),
        ("", "answer en"),
    ],
)
def test_a_default_task_goes_before_what_names_none(typed: str, asked: str) -> None:
    assert read(user(image(), text(typed)), task="answer en").text == asked


def test_a_default_task_is_asked_where_there_is_no_text() -> None:
    assert read(user(image()), task="caption en").text == "caption en"


def test_what_cannot_be_asked() -> None:
    assert refused(ChatMessage("system", "x")).code == "prompt_required"
    assert refused(ChatMessage("user", "ocr")).code == "image_required"
    assert refused(ChatMessage("user", None)).code == "image_required"
    assert refused(user(image())).code == "prompt_required"
    assert refused(user(image(), text(" \n"))).param == "messages[0].content"
    assert refused(user(image(), image(), image(), text("ocr"))).code == "too_many_images"
    error = refused(user(image(), ContentPart("input_audio"), text("ocr")))
    assert (error.code, error.param) == ("content_type_unsupported", "messages[0].content[1].type")
    assert refused(user(image(), ContentPart("text"))).param == "messages[0].content[1].text"
    error = refused(user(ContentPart("image_url"), text("ocr")))
    assert error.param == "messages[0].content[0].image_url"


def test_strict_refuses_what_is_not_read() -> None:
    asked = user(image(), text("ocr"))
    assert read(asked, strict=True).text == "ocr"
    for unread in (
        [ChatMessage("developer", "x"), asked],
        [ChatMessage("user", "hello"), asked],
        [user(text("Image 1:"), image(), text("ocr"))],
    ):
        assert refused(*unread, strict=True).code == "strict_chat"
