"""What `run` does about images that belong together, and about one whose answer is streamed."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice

from paligemma_edge.runtime.cli import run as run_options
from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.model import PaliGemma
from paligemma_edge.runtime.results.build import text_result
from paligemma_edge.runtime.run.report import CUT
from paligemma_edge.runtime.run.sources import Source, Sources


def run_at_once(options: argparse.Namespace, sources: Sources) -> int:
    """Print the one answer about all shown; 1 where one of them could not be read."""
    if sources.live or (options.stream and not options.together and sources.count != 1):
        raise OptionError("--stream prints the answer about one image; name one, or --together")
    model = run_options.open_model(options)
    config = model.engine.config
    # One more than the model could hold is too many already, however many a video has.
    shown = list(islice(sources, config.max_length // config.image_tokens + 1))
    try:
        images = [source.load() for source in shown]
        if options.stream:
            _stream(model, images, options)
        else:
            _print(_answered(model, images, options), shown, options)
    except ImageError as error:
        if options.json:
            _print({"prompt": options.prompt, "error": str(error)}, shown, options)
        else:
            print(f"paligemma-edge: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _stream(model: PaliGemma, images: list[ImageInput], options: argparse.Namespace) -> None:
    pieces = model.stream(
        images,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=run_options.sampling(options),
        grammar=run_options.grammar(options, len(images)),
        adapter=options.adapter,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _answered(
    model: PaliGemma, images: list[ImageInput], options: argparse.Namespace
) -> dict[str, object]:
    generation = model.generate(
        images,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=run_options.sampling(options),
        grammar=run_options.grammar(options, len(images)),
        adapter=options.adapter,
    )
    return text_result(generation).to_json()


def _print(record: dict[str, object], shown: list[Source], options: argparse.Namespace) -> None:
    if options.json:
        adapter = {} if options.adapter is None else {"adapter": options.adapter}
        images = [source.name for source in shown]
        print(json.dumps({"image": images, **adapter, **record}), flush=True)
    else:
        names = ", ".join(source.name for source in shown)
        prefix = f"{names}: " if len(shown) > 1 else ""
        print(f"{prefix}{record['text']}{CUT if record['truncated'] else ''}", flush=True)
