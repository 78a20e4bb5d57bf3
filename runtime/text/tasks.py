"""The tasks of prompts: whether words, boxes or masks are requested, and the prompt of each task.

The forms are those that PaliGemma was trained with: `caption en`, `answer en where is it?`,
`ocr`, `detect cat ; dog`, `segment cat`. Knows prompts. Knows nothing of answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.text.labels import checked_labels, is_label
from paligemma_edge.runtime.text.prompt_prefix import split_prefix

_SEPARATOR = ";"
EVERYTHING = ("all classes",)  # PaliGemma 2 was trained to answer this with any labels
_OBJECTS = re.compile(r"(detect|segment)(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """A prompt as it is asked, and whether its answer is words or objects.

    `labels` are the objects that the prompt requests, None where it requests words.
    """

    prompt: str
    labels: tuple[str, ...] | None = None
    masks: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that class ids count; none where any label was requested."""
        return () if self.labels in (None, EVERYTHING) else self.labels

    @classmethod
    def of(cls, prompt: str) -> Self:
        """The task of a whole prompt, by its first word. The prompt is asked as it is typed."""
        _, text = split_prefix(prompt) if isinstance(prompt, str) else (0, "")
        match = _OBJECTS.fullmatch(text.strip())
        if match is None:
            return cls(prompt)
        verb = match[1].lower()
        return cls(prompt, _labels(verb, match[2] or ""), verb == "segment")

    @classmethod
    def caption(cls, language: str) -> Self:
        """What the image shows, in a language such as "en"."""
        return cls(f"caption {_language(language)}")

    @classmethod
    def ask(cls, question: str, language: str) -> Self:
        """A question about the image."""
        if not isinstance(question, str) or not question.strip():
            raise PromptError(f"the question is {question!r}, wanted a text such as 'how many?'")
        return cls(f"answer {_language(language)} {question}")

    @classmethod
    def ocr(cls) -> Self:
        """What is written in the image."""
        return cls("ocr")

    @classmethod
    def detect(cls, what: str | Iterable[str]) -> Self:
        """Boxes of objects; "cat;dog" is asked as typed, ["cat", "dog"] as "cat ; dog"."""
        return cls._objects("detect", what)

    @classmethod
    def segment(cls, what: str | Iterable[str]) -> Self:
        """Boxes and masks of objects, given as for `detect`."""
        return cls._objects("segment", what)

    @classmethod
    def _objects(cls, verb: str, what: str | Iterable[str]) -> Self:
        labels = _labels(verb, what)
        text = what if isinstance(what, str) else " ; ".join(labels)
        return cls(f"{verb} {text}", labels, verb == "segment")


def _language(language: str) -> str:
    if not isinstance(language, str) or not language.isalpha():
        raise PromptError(f"the language is {language!r}, wanted a code such as 'en' or 'de'")
    return language


def _labels(verb: str, what: str | Iterable[str]) -> tuple[str, ...]:
    """The labels without duplicates; PromptError where there is none or one is not usable."""
    parts = what.split(_SEPARATOR) if isinstance(what, str) else what
    if isinstance(parts, Iterable):
        parts = [part for part in parts if not isinstance(part, str) or part.strip()]
        if not parts:
            raise PromptError(
                f"the prompt asks for nothing, wanted what to {verb}, such as 'cat ; dog'"
            )
    return _typed_labels(parts) if isinstance(what, str) else checked_labels(parts)


def _typed_labels(parts: Iterable[str]) -> tuple[str, ...]:
    """The labels of a text; what no answer can have as its label, such as `<loc0001>`, is none."""
    labels = [part for part in parts if is_label(part)]
    return checked_labels(labels) if labels else ()
