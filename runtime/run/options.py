"""What a run is to do: images, prompts, how to answer, where answers go. Checked when it is made.

Knows which options go together. Opens nothing, and needs no ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.sampling import Sampling, TopSampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.validation import check_count

if TYPE_CHECKING:  # they import ONNX Runtime, and a wrong option is reported without it
    from paligemma_edge.runtime.loading.options import LoadOptions
    from paligemma_edge.runtime.loading.variants import DeviceName

# Options that do not go together, as the command line writes them.
_EXCLUDED: Sequence[tuple[str, Sequence[str]]] = (
    ("--stream", ("--json", "--out", "--draw", "--also", "--choices")),
    ("--together", ("--out", "--draw", "--also", "--choices")),
    ("--choices", ("--regex", "--draw", "--temperature", "--no-grammar", "--any-label")),
    ("--regex", ("--no-grammar", "--any-label")),
    ("--any-label", ("--no-grammar",)),
)


def _default_load() -> LoadOptions:
    return {}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Images, prompts about each, and where the answers go.

    Each field is an option of `paligemma-edge run` of that name. OptionError, in its words, where
    values cannot be used or do not go together. A path may be a text or any `os.PathLike`.

    Args:
        bundle: folder that export wrote.
        prompt: asked about each image, such as "caption en" or "detect cat".
        paths: image files, folders, globs, videos, "-" for a list on standard input, "camera:0".
        also: more prompts about each image.
        together: one answer about all images, not one for each.
        every: seconds between frames of a video or camera; None is 1, and for a camera 0.
        slots: answers at a time; None is 4, or 1 where images come one by one.
        adapter: LoRA adapter of the bundle that answers.
        max_new_tokens: tokens of an answer at most.
        choices: closed set of answers.
        regex: pattern that an answer matches.
        any_label: let objects have labels that the prompt does not name.
        no_grammar: let `detect` and `segment` answer any text.
        temperature, top_k, top_p, seed: sampling; without a temperature the most likely token.
        out: file for all answers, .jsonl, .csv or COCO's .json.
        draw: image file or folder for overlays.
        overwrite: replace `out`, fill the folder of `draw` anew.
        json: print one JSON object for each answer.
        stream: print the text of the one answer as it comes.
        device, variant, load: as in `PaliGemma`.

    Example:
        >>> run_images(RunOptions(bundle="mix.bundle", prompt="detect cat", paths=["photos"]))
    """

    bundle: str | os.PathLike[str]
    prompt: str
    paths: Sequence[str | os.PathLike[str]]
    also: Sequence[str] = ()
    together: bool = False
    every: float | None = None
    slots: int | None = None
    adapter: str | None = None
    max_new_tokens: int | None = None
    choices: Sequence[str] | None = None
    regex: str | None = None
    any_label: bool = False
    no_grammar: bool = False
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    out: str | os.PathLike[str] | None = None
    draw: str | os.PathLike[str] | None = None
    overwrite: bool = False
    json: bool = False
    stream: bool = False
    device: DeviceName = "auto"
    variant: str | None = None
    load: LoadOptions = field(default_factory=_default_load)

    def __post_init__(self) -> None:
        self._check_paths()
        self._check_lists()
        for name in ("max_new_tokens", "slots"):
            if (value := getattr(self, name)) is not None:
                check_count(_flag(name), value)
        for name, others in _EXCLUDED:
            self._exclude(name, others)
        self._check_prompts()
        self._check_grammars()
        self.sampling()

    @property
    def prompts(self) -> list[str]:
        """All prompts, in order."""
        return [self.prompt, *self.also]

    def sampling(self) -> Sampling | None:
        """How tokens are chosen; None for the most likely ones."""
        if self.temperature is None:
            if self.top_k or self.top_p != 1.0:
                raise OptionError(
                    "--top-k and --top-p choose among samples; give --temperature too"
                )
            return None
        return TopSampling(self.temperature, self.top_k, self.top_p, self.seed)

    def regex_grammar(self) -> Grammar | None:
        """The grammar of `regex`, if there is one."""
        return None if self.regex is None else Regex(self.regex)

    def objects(self) -> ObjectOptions:
        """How `detect` and `segment` are answered."""
        return ObjectOptions(
            constrained=not self.no_grammar, labels="any" if self.any_label else "asked"
        )

    def grammar(self, image_count: int) -> Grammar | None:
        """The grammar of one answer about `image_count` images; objects need a single image."""
        if self.regex is not None or self.no_grammar or image_count > 1:
            return self.regex_grammar()
        return task_grammar(Task.of(self.prompt), "any" if self.any_label else "asked")

    def _check_paths(self) -> None:
        for name in ("bundle", "out", "draw"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike) and (value is not None or name == "bundle"):
                raise OptionError(f"{name} is {value!r}, wanted a path; give a str or a Path")

    def _check_lists(self) -> None:
        """A single text would be taken for the list of its letters."""
        _check_list("paths", self.paths, (str, os.PathLike), "photo.jpg")
        _check_list("also", self.also, (str,), "caption en")
        if self.choices is not None:
            _check_list("choices", self.choices, (str,), "yes")
        if not self.paths:
            raise OptionError("paths is empty, wanted at least one; name an image or a folder")

    def _exclude(self, name: str, others: Sequence[str]) -> None:
        given = [other for other in others if self._is_given(other)]
        if self._is_given(name) and given:
            raise OptionError(f"{name} does not go with {' and '.join(given)}; leave one out")

    def _is_given(self, flag: str) -> bool:
        value = getattr(self, flag.removeprefix("--").replace("-", "_"))
        return value is not None and value is not False and value not in ((), [])

    def _check_prompts(self) -> None:
        for prompt in self.prompts:
            if self.prompts.count(prompt) > 1:
                raise OptionError(f"the prompt {prompt!r} is given twice; ask it once")

    def _check_grammars(self) -> None:
        """What only a tokenizer can tell is checked when the bundle is open."""
        tasks = [Task.of(prompt) for prompt in self.prompts]
        self.regex_grammar()
        if self.choices is None:
            return
        Choices.of(self.choices)
        for task in tasks:
            if task.labels is not None:
                raise OptionError(
                    f"--choices does not go with {task.prompt!r}, whose answers are boxes; "
                    "ask for words"
                )


def _check_list(name: str, value: object, kinds: tuple[type, ...], example: str) -> None:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or not all(isinstance(entry, kinds) for entry in cast(Sequence[object], value)):
        what = "paths" if os.PathLike in kinds else "texts"
        raise OptionError(f"{name} is {value!r}, wanted a list of {what} such as [{example!r}]")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
