"""A run with one answer: about images that belong together, or streamed as it comes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.results.build import text_result
from paligemma_edge.runtime.run.options import RunOptions
from paligemma_edge.runtime.run.queries import made_by
from paligemma_edge.runtime.run.report import CUT
from paligemma_edge.runtime.run.sources import Source, Sources
from paligemma_edge.runtime.system.console import Console


def check_single(options: RunOptions, sources: Sources) -> None:
    """OptionError where the images would have more than one answer, or never end."""
    if sources.live or (options.stream and not options.together and sources.count != 1):
        raise OptionError("--stream prints the answer about one image; name one, or --together")


def run_single(model: LoadedModel, options: RunOptions, sources: Sources, console: Console) -> int:
    """Print the one answer about all images → 1 where one of them could not be read, else 0."""
    config = model.engine.config
    # One image more than the model can hold is an error already, however long a video is.
    shown = list(islice(sources, config.max_length // config.image_tokens + 1))
    answered_by: dict[str, object] = {**made_by(model.variant, options.adapter)}
    try:
        pipeline = model.with_adapter(options.adapter)
        # Checked before an image is read: a list of missing files may be too long as well.
        request = _request(pipeline, shown, options)
        if options.stream:
            _stream(pipeline, request, console)
        else:
            answer = text_result(pipeline.answer_one(request)).to_dict()
            _print(answered_by | answer, shown, options, console)
    except ImageError as error:
        if options.json:
            record = answered_by | {"prompt": options.prompt, "error": str(error)}
            _print(record, shown, options, console)
        else:
            console.message(str(error))
        return 1
    return 0


def _stream(pipeline: Pipeline, request: Request, console: Console) -> None:
    """Print an answer as it comes, and in the end whether it was cut."""
    pieces = pipeline.stream(request)
    while True:
        try:
            console.write(next(pieces))
        except StopIteration as end:
            console.write(f"{CUT if end.value == 'length' else ''}\n")
            return


def _request(pipeline: Pipeline, shown: Sequence[Source], options: RunOptions) -> Request:
    how = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling(),
        grammar=options.grammar(len(shown)),
    )
    return pipeline.request_about([source.load() for source in shown], options.prompts[0], how)


def _print(
    record: dict[str, object], shown: Sequence[Source], options: RunOptions, console: Console
) -> None:
    names = [source.name for source in shown]
    if options.json:
        console.exact(json.dumps({"image": names, **record}) + "\n")
        return
    cut = CUT if record["finish_reason"] == "length" else ""
    if len(names) > 1:
        console.answer(f"{', '.join(names)}: {record['text']}{cut}")
    else:  # there is no other answer that its line breaks could be taken for
        console.write(f"{record['text']}{cut}\n")
