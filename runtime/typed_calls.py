"""The typed calls, written once: what may be asked about images that are given already.

`EncodedImage` answers each with a result, `BatchCalls` with an iterator of results. `PaliGemma`
has the same calls with an image in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.grammar.task_grammar import Labels
from paligemma_edge.runtime.text.tasks import Task

Text = TypeVar("Text")
Objects = TypeVar("Objects")
Choice = TypeVar("Choice")


class TypedCalls(ABC, Generic[Text, Objects, Choice]):
    """Calls that answer a prompt of PaliGemma's with words, objects or one of several choices.

    In all of them `max_new_tokens` is how long an answer may be, in tokens: by default 256, or as
    many as the model still holds. PromptError and OptionError say, before anything is answered,
    what cannot be asked; DeviceError is raised where the device fails.
    """

    def caption(self, language: str = "en", *, max_new_tokens: int | None = None) -> Text:
        """Say what the image shows.

        Args:
            language: of the caption, such as "en" or "de".
            max_new_tokens: tokens of the answer at most.

        Returns:
            A TextResult; of a batch an iterator with one for each image.

        Raises:
            PromptError: the language is no code, or the answer does not fit into the model.
            OptionError: `max_new_tokens` is no whole number above 0.

        Example:
            >>> str(encoded.caption())
            'a cat on a sofa'
        """
        return self._words(Task.caption(language), max_new_tokens)

    def ask(
        self, question: str, language: str = "en", *, max_new_tokens: int | None = None
    ) -> Text:
        """Answer a question.

        Args:
            question: such as "how many cats are there?".
            language: of the answer, such as "en" or "de".
            max_new_tokens: tokens of the answer at most.

        Returns:
            A TextResult; of a batch an iterator with one for each image.

        Raises:
            PromptError: the question is empty or does not fit into the model, or the language is no
                code.
            OptionError: `max_new_tokens` is no whole number above 0.

        Example:
            >>> str(encoded.ask("how many cats are there?"))
            '2'
        """
        return self._words(Task.ask(question, language), max_new_tokens)

    def ocr(self, *, max_new_tokens: int | None = None) -> Text:
        """Read what is written in the image.

        Args:
            max_new_tokens: tokens of the answer at most.

        Returns:
            A TextResult; of a batch an iterator with one for each image.

        Raises:
            PromptError: the answer does not fit into the model.
            OptionError: `max_new_tokens` is no whole number above 0.

        Example:
            >>> str(encoded.ocr())
            'STOP'
        """
        return self._words(Task.ocr(), max_new_tokens)

    def detect(
        self,
        what: str | Iterable[str],
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> Objects:
        """Find objects: boxes with labels.

        Args:
            what: a text is asked as it is, `detect cat ; dog` for "cat ; dog"; a list is put into
                that form, ["cat", "dog"] too.
            constrained: choose only tokens of the form of such an answer, so that it always parses.
                Where the model would not begin with an object there is none, and its own words are
                in the result's `text`. False lets it say anything.
            labels: "any" leaves labels to the model; "asked" allows those of `what` alone.
            classes: names that `class_id` counts, the same for all your images; by default those
                that `what` asks for.
            max_new_tokens: tokens of the answer at most.

        Returns:
            An ObjectResult, whose boxes are in pixels (x0, y0, x1, y1); of a batch an iterator with
            one for each image.

        Raises:
            PromptError: `what` names nothing, or a label that no answer can hold, or does not fit.
            OptionError: options do not go together, or there are several images: a box lies in one.

        Example:
            >>> [(one.label, one.xyxy) for one in encoded.detect(["cat", "dog"])]
            [('cat', (12, 40, 230, 310))]
        """
        objects = ObjectOptions(constrained=constrained, labels=labels, classes=classes)
        return self._objects(Task.detect(what), objects, max_new_tokens)

    def segment(
        self,
        what: str | Iterable[str],
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> Objects:
        """Find objects: boxes with labels and masks.

        Args:
            what: as for `detect`.
            constrained: as for `detect`.
            labels: as for `detect`.
            classes: as for `detect`.
            max_new_tokens: tokens of the answer at most; an object takes about 25.

        Returns:
            An ObjectResult whose objects have a `mask`, bool [height, width]; where the bundle has
            no mask decoder, boxes alone and a note. Of a batch an iterator with one for each image.

        Raises:
            PromptError: as for `detect`.
            OptionError: as for `detect`.

        Example:
            >>> [int(one.mask.sum()) for one in encoded.segment("cat")]
            [30412]
        """
        objects = ObjectOptions(constrained=constrained, labels=labels, classes=classes)
        return self._objects(Task.segment(what), objects, max_new_tokens)

    def run(
        self,
        prompt: str,
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> Text | Objects:
        """Ask a whole prompt, exactly as it is typed.

        Args:
            prompt: such as "caption en", "answer en where is it?", "detect cat ; dog". What begins
                with `detect` or `segment` is answered with objects, all else with words.
            constrained: as for `detect`; of no effect on words.
            labels: as for `detect`.
            classes: as for `detect`.
            max_new_tokens: tokens of the answer at most.

        Returns:
            An ObjectResult or a TextResult; of a batch an iterator with one for each image.

        Raises:
            PromptError: the prompt asks for nothing, as `detect` alone, or is too long.
            OptionError: as for `detect`.

        Example:
            >>> encoded.run("detect cat").text
            '<loc0161><loc0031><loc0998><loc0644> cat'
        """
        objects = ObjectOptions(constrained=constrained, labels=labels, classes=classes)
        task = Task.of(prompt)
        if task.labels is None:
            return self._words(task, max_new_tokens)
        return self._objects(task, objects, max_new_tokens)

    def classify(self, prompt: str, choices: Iterable[str]) -> Choice:
        """Choose the most likely one of a closed set of answers.

        Args:
            prompt: a whole prompt, such as "answer en is it raining?".
            choices: the answers, such as ["yes", "no"]; a beginning that they share is read once.

        Returns:
            A ChoiceResult with the probability of each; of a batch an iterator with one for each
            image.

        Raises:
            PromptError: the prompt cannot be used.
            OptionError: there are no choices, or one of them is empty or given twice.

        Example:
            >>> encoded.classify("answer en is it raining?", ["yes", "no"]).probabilities
            {'yes': 0.08, 'no': 0.92}
        """
        return self._choice(prompt, choices)

    @abstractmethod
    def _words(self, task: Task, max_new_tokens: int | None) -> Text: ...

    @abstractmethod
    def _objects(
        self, task: Task, objects: ObjectOptions, max_new_tokens: int | None
    ) -> Objects: ...

    @abstractmethod
    def _choice(self, prompt: str, choices: Iterable[str]) -> Choice: ...
