"""What a run is to do: images, prompts, how to answer, where answers go. Checked when it is made.

Knows which options go together. Opens nothing, and needs no ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.sampling import Sampling, TopSampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.grammar.regex import Regex
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.validation import check_count, check_flag, check_share, plain

if TYPE_CHECKING:  # they import ONNX Runtime, and a wrong option is reported without it
    from paligemma_edge.runtime.loading.options import LoadOptions
    from paligemma_edge.runtime.loading.variants import DeviceName

# Options that do not go together, as the command line writes them.
_EXCLUDED: Sequence[tuple[str, Sequence[str]]] = (
    ("--questions", ("--also", "--together", "--stream", "--every")),
    ("--stream", ("--json", "--out", "--draw", "--also", "--choices", "--min-confidence")),
    ("--together", ("--out", "--draw", "--also", "--choices", "--min-confidence")),
    ("--choices", ("--regex", "--draw", "--temperature", "--max-new-tokens")),
    ("--choices", ("--unconstrained", "--labels", "--min-confidence")),
    ("--regex", ("--unconstrained", "--labels")),
    ("--labels", ("--unconstrained",)),
    ("--raw", ("--json", "--out")),
)
# Options that only change what another one does.
_REQUIRED: Sequence[tuple[str, Sequence[str]]] = (
    ("--images", ("--questions",)),
    ("--overwrite", ("--out", "--draw")),
    ("--top-k", ("--temperature",)),
    ("--top-p", ("--temperature",)),
    ("--seed", ("--temperature",)),
)
_FLAGS = ("together", "unconstrained", "overwrite", "json", "raw", "stream")
_OF_OBJECTS = ("--labels", "--unconstrained", "--min-confidence")  # of no use for words


def _default_load() -> LoadOptions:
    return {}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Images, prompts about each, and where the answers go.

    Each field is an option of `paligemma-edge run` of that name. OptionError, in its words, where
    values cannot be used or do not go together. A path may be a text or any `os.PathLike`.

    Args:
        bundle: folder that export wrote, or its name on the Hub, as of `PaliGemma`.
        prompt: asked about each image, such as "caption en" or "detect cat".
        paths: image files, folders, globs, videos, "-" for a list on standard input, "camera:0".
        also: more prompts about each image.
        questions: file of JSON Lines, {"image": ..., "prefix": ...}, or "-" for standard input: in
            place of `prompt` and `paths`.
        images: folder of the images that `questions` names; None is the folder of that file.
        together: one answer about all images, not one for each.
        every: seconds between frames of a video or camera; None is 1, and for a camera 0.
        adapter: LoRA adapter of the bundle that answers.
        max_new_tokens: tokens of an answer at most; None is 256, or what the model can hold.
        choices: closed set of answers.
        regex: pattern that an answer matches.
        labels: labels of objects: "any", or only those that are "asked" for; None is "any".
        unconstrained: let `detect` and `segment` answer any text.
        temperature: sampling; None is the most likely token.
        top_k, top_p, seed: of sampling; None is all tokens, 1.0 and 0.
        min_confidence: leave out objects of less confidence, 0 to 1.
        out: file for all answers, .jsonl, .csv or COCO's .json.
        draw: image file or folder for overlays.
        overwrite: replace `out`, fill the folder of `draw` anew.
        json: print one JSON object for each answer.
        raw: print the model's own text, with the tokens of boxes and masks.
        stream: print the text of the one answer as it comes.
        device, variant, load: as in `PaliGemma`. The `max_batch_size` of `load` is how many
            answers come at a time; None is 4, or 1 where images come one by one.

    Example:
        >>> run_images(RunOptions(bundle="mix.bundle", prompt="detect cat", paths=["photos"]))
    """

    bundle: str | os.PathLike[str]
    prompt: str | None = None
    paths: Sequence[str | os.PathLike[str]] = ()
    also: Sequence[str] = ()
    questions: str | os.PathLike[str] | None = None
    images: str | os.PathLike[str] | None = None
    together: bool = False
    every: float | None = None
    adapter: str | None = None
    max_new_tokens: int | None = None
    choices: Sequence[str] | None = None
    regex: str | None = None
    labels: Literal["any", "asked"] | None = None
    unconstrained: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_confidence: float | None = None
    out: str | os.PathLike[str] | None = None
    draw: str | os.PathLike[str] | None = None
    overwrite: bool = False
    json: bool = False
    raw: bool = False
    stream: bool = False
    device: DeviceName = "auto"
    variant: str | None = None
    load: LoadOptions = field(default_factory=_default_load)

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        self._check_paths()
        self._check_lists()
        self._check_texts()
        self._check_asked()
        if self.max_new_tokens is not None:
            check_count("--max-new-tokens", self.max_new_tokens)
        if self.min_confidence is not None:
            check_share("--min-confidence", self.min_confidence)
        for name, others in _EXCLUDED:
            self._exclude(name, others)
        for name, others in _REQUIRED:
            self._require(name, others)
        self._check_prompts()
        self._check_grammars()
        self.sampling()

    @property
    def prompts(self) -> list[str]:
        """All prompts, in order; none where `questions` has them."""
        return [] if self.prompt is None else [self.prompt, *self.also]

    def sampling(self) -> Sampling | None:
        """How tokens are chosen; None for the most likely ones."""
        if self.temperature is None:
            return None
        names = ("temperature", "top_k", "top_p", "seed")
        given = {name: getattr(self, name) for name in names}
        return TopSampling(**{name: value for name, value in given.items() if value is not None})

    def regex_grammar(self) -> Grammar | None:
        """The grammar of `regex`, if there is one."""
        return None if self.regex is None else Regex(self.regex)

    def objects(self) -> ObjectOptions:
        """How `detect` and `segment` are answered."""
        return ObjectOptions(constrained=not self.unconstrained, labels=self.labels or "any")

    def grammar(self, image_count: int) -> Grammar | None:
        """The grammar of one answer about `image_count` images; objects need a single image."""
        if self.regex is not None or self.unconstrained or image_count > 1:
            return self.regex_grammar()
        return task_grammar(Task.of(self.prompt or ""), self.labels or "any")

    def _check_paths(self) -> None:
        for name in ("bundle", "out", "draw", "questions", "images"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike) and (value is not None or name == "bundle"):
                raise OptionError(f"{name} is {value!r}, wanted a path; give a str or a Path")
        for path in (self.bundle, self.out, self.draw, self.questions, self.images):
            if path is not None and "\0" in os.fsdecode(path):
                raise OptionError(f"{os.fsdecode(path)!r} holds a NUL byte, which no path can")

    def _check_lists(self) -> None:
        """A single text would be taken for the list of its letters."""
        _check_list("paths", self.paths, (str, os.PathLike), "photo.jpg")
        _check_list("also", self.also, (str,), "caption en")
        if self.choices is not None:
            _check_list("choices", self.choices, (str,), "yes")

    def _check_texts(self) -> None:
        for name in ("prompt", "adapter", "variant"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise OptionError(f"{name} is {value!r}, wanted a text")

    def _check_asked(self) -> None:
        """Either questions, or a prompt and images."""
        given = ["PROMPT"] * (self.prompt is not None) + ["PATHS"] * bool(self.paths)
        if self.questions is not None:
            if given:
                raise OptionError(
                    f"--questions names the images and the prompts; leave out {' and '.join(given)}"
                )
            return
        if self.prompt is None:
            raise OptionError("PROMPT is missing, such as 'caption en'; or give --questions FILE")
        if not self.paths:
            raise OptionError("PATHS is missing, wanted at least one; name an image or a folder")

    def _exclude(self, name: str, others: Sequence[str]) -> None:
        given = [other for other in others if self._is_given(other)]
        if self._is_given(name) and given:
            raise OptionError(f"{name} does not go with {' and '.join(given)}; leave one out")

    def _require(self, name: str, others: Sequence[str]) -> None:
        if self._is_given(name) and not any(map(self._is_given, others)):
            wanted = " or ".join(others)
            raise OptionError(f"{name} has no effect without {wanted}; give both or none")

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
        if tasks and all(task.labels is None for task in tasks):
            for name in filter(self._is_given, _OF_OBJECTS):
                raise OptionError(
                    f"{name} is about objects, and no prompt is `detect` or `segment`; leave it out"
                )
        objects = [task.prompt for task in tasks if task.labels is not None]
        if self.stream and objects and not self.raw:
            raise OptionError(
                f"--stream prints words as they come, and {objects[0]!r} asks for objects; give "
                "--raw for the model's own text, or leave --stream out"
            )
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
