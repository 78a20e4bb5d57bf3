"""A run from its options to its end: find images, answer prompts about them, write the answers.

Reads in the order of the data. Errors that need no model are found before it is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from paligemma_edge.runtime.engine.cache_plan import DEFAULT_MAX_BATCH_SIZE
from paligemma_edge.runtime.errors import ImageError, OutputError
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.results.build import WITHOUT_MASKS
from paligemma_edge.runtime.run.answer import Answers, among_choices, in_slots
from paligemma_edge.runtime.run.class_ids import ClassIds
from paligemma_edge.runtime.run.decode_errors import as_image_errors
from paligemma_edge.runtime.run.hints import left_out_hint, prompt_hints, task_hint
from paligemma_edge.runtime.run.identity import run_identity
from paligemma_edge.runtime.run.journal import Journal, Key
from paligemma_edge.runtime.run.options import RunOptions
from paligemma_edge.runtime.run.overlays import Overlays, lacks_masks, open_overlays
from paligemma_edge.runtime.run.progress import RunProgress
from paligemma_edge.runtime.run.queries import Failure, QueryResult, answer_sources, made_by
from paligemma_edge.runtime.run.questions import read_questions
from paligemma_edge.runtime.run.report import Report, Style
from paligemma_edge.runtime.run.single import check_single, run_single
from paligemma_edge.runtime.run.sources import Source, Sources, find_sources
from paligemma_edge.runtime.run.writers import check_out, finish
from paligemma_edge.runtime.system.atomic_file import descriptor_of, is_stream
from paligemma_edge.runtime.system.console import Console
from paligemma_edge.runtime.system.streams import is_missing, standard_input

_READ_AHEAD = 2  # images for each slot
_STDOUT = 1  # the descriptor of standard output


def run_images(
    options: RunOptions, *, console: Console | None = None, stdin: TextIO | None = None
) -> int:
    """Answer each prompt about each image, as `paligemma-edge run` does.

    A run with `out` that is interrupted leaves a journal, and its KeyboardInterrupt names it.
    A camera's run has no other end: interrupted, it writes its file and returns.

    Args:
        options: images, prompts and outputs; see `RunOptions`.
        console: where answers and messages go; by default those of this process.
        stdin: list of files for the path "-"; by default that of this process.

    Returns:
        0, or 1 where one of the images could not be read.

    Raises:
        PaliGemmaError: a subclass whose message is one line: what cannot be read, done or written.
    """
    console = console or Console.standard()
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_out(out, overwrite=options.overwrite)
    sources = _sources(options, stdin or standard_input())
    hints = prompt_hints(options.prompts), task_hint(options.prompts)
    for hint in (*itertools.chain(*hints), *left_out_hint(sources.left_out)):
        console.note(hint)
    if options.stream or options.together:
        check_single(options, sources)
        return run_single(open_model(options), options, sources, console)
    with contextlib.ExitStack() as stack:
        journal = None if out is None else stack.enter_context(_journal(out, options, console))
        overlays = _overlays(options, sources, journal)
        job = _Job(options, sources, console, journal, out, overlays)
        with _journal_in_interrupt(None if out is None or is_stream(out) else journal):
            return job.run()


def open_model(options: RunOptions) -> LoadedModel:
    """Open the bundle as the options say; errors as `PaliGemma`."""
    return load_model(options.bundle, options.device, options.variant, **options.load)


@dataclass(frozen=True)
class _Job:
    """A run, and where its answers go."""

    options: RunOptions
    sources: Sources
    console: Console
    journal: Journal | None
    out: Path | None  # what the journal becomes
    overlays: Overlays | None
    keys: list[Key] = field(default_factory=list)  # of the journal's records, in order

    def run(self) -> int:
        """Answer what was not answered yet, then write the file of `out`."""
        failures = 0
        if self._is_done():
            self.keys.extend(_keys(self.sources.known, self.options))
        else:
            failures = self._answer(open_model(self.options))
        if self.journal is not None and self.out is not None:
            failures = self._finish(self.journal, self.out)
        return 1 if failures else 0

    def _answer(self, model: LoadedModel) -> int:
        """How many of the answers failed."""
        slots = _slots(self.options, self.sources, model)
        answers = _answers(model, self.options, self.sources, slots)
        report = _report(self.options, self.sources, self.console, self.journal)
        with contextlib.closing(report), _ended_by_interrupt(self.sources.live):
            answer_sources(
                self._recorded(),
                self.options.prompts,
                read=lambda source: _read(model, source),
                answer=answers.answer,
                on_result=lambda result: self._take(result, report, model),
                done=frozenset() if self.journal is None else self.journal,
                # A camera's frame must be recent when it is answered, and an image of a slow
                # list is answered before the next name is waited for.
                depth=0 if self._is_paced else _READ_AHEAD * slots,
                refused=answers.refused,
                model=made_by(model.variant, self.options.adapter),
            )
        return report.failures

    def _finish(self, journal: Journal, out: Path) -> int:
        """Write the file; how many of its answers failed."""
        order = list(self.keys)
        if self.sources.live:  # frames of an earlier run cannot be read again
            order = list(dict.fromkeys((*journal.keys, *order)))
        elif self.sources.count is None:  # a list or a video may have ended early this time
            order = list(dict.fromkeys((*order, *journal.keys)))
        journal.keep_only(order)
        count, failures = journal.answers, journal.failures
        finish(journal, order, out, self.sources.relative)
        if not self.options.json:
            failed = f", {failures:,} failed" if failures else ""
            # What is written to a stream may be standard output's.
            tell = self.console.note if is_stream(out) else self.console.summary
            tell(f"{out}: {_counted(count)}{failed}")
        return failures

    @property
    def _is_paced(self) -> bool:
        """Whether each image is answered before the next one is read."""
        return self.sources.live or (self.sources.paced and _batch_size(self.options) is None)

    def _recorded(self) -> Iterator[Source]:
        """The sources, each with its place among the overlays and in the journal."""
        sources = self.sources if self.overlays is None else self.overlays.claim(self.sources)
        for source in sources:
            if self.journal is not None:
                self.keys.extend(_keys([source], self.options))
            yield source

    def _take(self, result: QueryResult, report: Report, model: LoadedModel) -> None:
        """Draw, record, print: what is recorded is not drawn again, so its overlay comes first."""
        try:
            self._draw(result, report, model)
            record = result.record
        except ImageError as error:  # such as of an image that was deleted since it was read
            result = dataclasses.replace(result, outcome=error)
            record = result.record
        if self.journal is not None:
            self.journal.append(record)
        report(result)

    def _draw(self, result: QueryResult, report: Report, model: LoadedModel) -> None:
        if self.overlays is None or isinstance(result.outcome, Failure):
            return
        decode_masks = model.engine.decode_masks if model.engine.decodes_masks else None
        if lacks_masks(result.outcome, decode_masks):
            report.note(WITHOUT_MASKS)
        load = model.pipeline.images.load
        self.overlays.write(result.source, result.prompt, result.outcome, decode_masks, load=load)

    def _is_done(self) -> bool:
        return (
            self.journal is not None
            and self.sources.count is not None
            and _count_done(self.options, self.sources, self.journal) == self.sources.count
        )


def _sources(options: RunOptions, stdin: TextIO) -> Sources:
    if options.questions is not None:
        return read_questions(options.questions, stdin, options.images)
    return find_sources(options.paths, stdin, options.every)


def _keys(sources: Iterable[Source], options: RunOptions) -> Iterator[Key]:
    """What is asked about each of these images."""
    for source in sources:
        for prompt in source.prompts or options.prompts:
            yield source.name, prompt


def _answers(model: LoadedModel, options: RunOptions, sources: Sources, slots: int) -> Answers:
    """What answers; PromptError for a prompt of the options, not for one of many questions."""
    pipeline = model.with_adapter(options.adapter)
    prompts = options.prompts or dict.fromkeys(
        prompt for source in sources.known for prompt in source.prompts
    )
    if options.choices is not None:
        answers = among_choices(pipeline, prompts, options.choices)
    else:
        answers = in_slots(
            pipeline,
            prompts,
            slots=slots,
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling(),
            grammar=options.regex_grammar(),
            objects=options.objects(),
            min_confidence=options.min_confidence,
        )
    for prompt in options.prompts:
        if prompt in answers.refused:
            raise answers.refused[prompt]
    return answers


def _read(model: LoadedModel, source: Source) -> ImageBatch:
    """Its pixels; ImageError whatever stops that, since no single file ends a run."""
    with as_image_errors(source.name):
        return model.pipeline.read_images([source.load()])


def _slots(options: RunOptions, sources: Sources, model: LoadedModel) -> int:
    """As many as were requested and can be used; one where images come one by one."""
    size = _batch_size(options)
    requested = 1 if sources.paced and size is None else size
    slots = model.pipeline.cache_pool.slots(requested, DEFAULT_MAX_BATCH_SIZE)
    if sources.count is None:
        return slots
    return min(slots, sum(1 for _ in _keys(sources.known, options)))


def _batch_size(options: RunOptions) -> int | None:
    return options.load.get("max_batch_size")


def _counted(answers: int) -> str:
    return f"{answers:,} answer{'' if answers == 1 else 's'}"


def _overlays(options: RunOptions, sources: Sources, journal: Journal | None) -> Overlays | None:
    if options.draw is None:
        return None
    return open_overlays(
        Path(options.draw),
        options.prompts,
        sources,
        reuse=options.overwrite or (journal is not None and len(journal) > 0),
    )


def _style(options: RunOptions, console: Console, journal: Journal | None) -> Style:
    """What is printed of each answer; drawings go on where answers cannot be printed."""
    if options.draw is not None:
        drawn_there = descriptor_of(Path(options.draw)) == _STDOUT
        if drawn_there or is_missing(console.out):
            return "none"
    return "json" if options.json else "text" if journal is None else "none"


def _report(
    options: RunOptions, sources: Sources, console: Console, journal: Journal | None
) -> Report:
    many = sources.count != 1
    progress = None
    if many and not console.quiet and (journal is not None or console.err.isatty()):
        resumed = 0 if journal is None else _count_done(options, sources, journal)
        progress = RunProgress(console.err, sources.count, resumed=resumed)
    return Report(
        _style(options, console, journal),
        names=many,
        prompts=bool(options.also) or (many and options.questions is not None),
        progress=progress,
        raw=options.raw,
        console=console,
        classes=_classes(options, sources, journal),
    )


def _classes(options: RunOptions, sources: Sources, journal: Journal | None) -> ClassIds:
    """Ids of labels as they are printed; those of an interrupted run are counted first."""
    questions = () if options.prompts else sources.known
    asked = (prompt for source in questions for prompt in source.prompts)
    classes = ClassIds(options.prompts or asked)
    if journal is not None and options.json:
        for record in journal.records(journal.keys):
            classes.number(record)
    return classes


def _count_done(options: RunOptions, sources: Sources, journal: Journal) -> int:
    """How many images have an answer to every prompt already."""
    if sources.count is None:
        return journal.answers // len(options.prompts)
    return sum(all(key in journal for key in _keys([one], options)) for one in sources.known)


@contextlib.contextmanager
def _journal(out: Path, options: RunOptions, console: Console) -> Iterator[Journal]:
    """The journal of an output; that of a stream, which no run can go on with, is thrown away."""
    identity = run_identity(options)
    if not is_stream(out):
        with Journal.open(out, identity, note=console.message) as journal:
            yield journal
        return
    with _temporary_folder() as folder, Journal.open(folder / "answers", identity) as journal:
        yield journal


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = TemporaryDirectory(prefix="paligemma-edge-")
    except OSError as error:
        raise OutputError(
            error.errno,
            f"no folder for temporary files: {error.strerror}; name one that can be written "
            "in the environment variable TMPDIR",
        ) from None
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def _journal_in_interrupt(journal: Journal | None) -> Iterator[None]:
    """Add to an interrupt how many answers the journal keeps."""
    try:
        yield
    except KeyboardInterrupt:
        if journal is None or not journal.answers:
            raise
        raise KeyboardInterrupt(
            f"{journal.path} keeps {_counted(journal.answers)}, and the same command goes on"
        ) from None


@contextlib.contextmanager
def _ended_by_interrupt(live: bool) -> Iterator[None]:
    """Let an interrupt end a run of a camera, which has no other end."""
    try:
        yield
    except KeyboardInterrupt:
        if not live:
            raise
