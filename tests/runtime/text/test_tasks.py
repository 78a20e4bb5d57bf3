from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.text.tasks import Task


def test_the_prompts_are_those_of_the_training() -> None:
    assert Task.caption("en") == Task("caption en")
    assert Task.ask("where is it?", "de") == Task("answer de where is it?")
    assert Task.ocr() == Task("ocr")
    assert Task.detect(["cat ", "dog"]) == Task("detect cat ; dog", ("cat", "dog"), False)
    assert Task.segment(["cat", "black dog"]) == Task(
        "segment cat ; black dog", ("cat", "black dog"), True
    )


@pytest.mark.parametrize(
    "what", ["cat;dog", " a  cat ;cat;", "Cat", "cat and dog\n", "cat, dog", "a <loc0001>"]
)
def test_what_is_typed_is_asked(what: str) -> None:
    assert Task.detect(what).prompt == f"detect {what}"
    assert Task.segment(what) == Task.of(f"segment {what}")


def test_a_label_is_asked_for_once_and_in_one_line() -> None:
    assert Task.detect(" a  cat\n;; a cat ; b;").labels == ("a cat", "b")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("detect cat ; dog", Task("detect cat ; dog", ("cat", "dog"))),
        (" segment  cat\n", Task(" segment  cat\n", ("cat",), True)),
        ("Detect cat;dog", Task("Detect cat;dog", ("cat", "dog"))),
        ("<image>detect cat", Task("<image>detect cat", ("cat",))),
        ("<image><image> segment cat", Task("<image><image> segment cat", ("cat",), True)),
        ("<image><bos>detect cat", Task("<image><bos>detect cat", ("cat",))),
        ("<bos>segment cat", Task("<bos>segment cat", ("cat",), True)),
        ("<bos>caption en", Task("<bos>caption en")),
        ("detect <loc0001>", Task("detect <loc0001>", ())),
        ("detect <eos> ; cat", Task("detect <eos> ; cat", ("cat",))),
        ("detecting cats", Task("detecting cats")),
        ("segment-wise", Task("segment-wise")),
        ("please detect cat", Task("please detect cat")),
        (" caption en\n", Task(" caption en\n")),
        ("<image>caption en", Task("<image>caption en")),
    ],
)
def test_the_first_word_is_the_task(prompt: str, expected: Task) -> None:
    assert Task.of(prompt) == expected


@given(st.text())
def test_any_prompt_has_a_task_or_a_reason(prompt: str) -> None:
    for text in (prompt, f"detect {prompt}"):
        try:
            task = Task.of(text)
            assert task.labels is not None or task.prompt == text
            assert Task.of(task.prompt) == task
        except PromptError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("prompt", ["detect", "detect ", "segment ;", "detect  ; \n;"])
def test_a_prompt_that_asks_for_nothing_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="asks for nothing, wanted what to"):
        Task.of(prompt)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("", "asks for nothing"),
        ([], "asks for nothing"),
        ([" ", ""], "asks for nothing"),
        (["cat;dog"], "holds ';'"),
        (["cat <loc0001>"], "'<' or '>'"),
        (["<eos>"], "'<' or '>'"),
        (3, "the labels are 3"),
        (["cat", None], "a label is None"),
    ],
)
def test_labels_that_no_answer_can_hold(what: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(PromptError, match=message):
        Task.detect(what)


@pytest.mark.parametrize("language", ["", "e n", "en;", 3, None])
def test_a_language_is_a_word(language: Any) -> None:  # noqa: ANN401
    with pytest.raises(PromptError, match="the language is"):
        Task.caption(language)


@pytest.mark.parametrize("question", ["", " ", None])
def test_a_question_has_words(question: Any) -> None:  # noqa: ANN401
    with pytest.raises(PromptError, match="the question is"):
        Task.ask(question, "en")
