"""What `run`, `inspect` and `check` do: call the library, print what it says."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.errors import OptionError, OutputError

if TYPE_CHECKING:
    from paligemma_edge.runtime.model import Generation, Images, PaliGemma
    from paligemma_edge.runtime.sampling import Sampling


def run(options: argparse.Namespace) -> int:
    """Answer the prompt about each picture, or about all of them together."""
    from paligemma_edge.runtime.model import PaliGemma

    _check_run(options)
    model = PaliGemma(
        options.bundle, device=options.device, variant=options.variant, threads=options.threads
    )
    groups = [options.images] if options.together else [[image] for image in options.images]
    for images in groups:
        if options.stream:
            _print_stream(model, images, options)
        else:
            _print_answer(model, images, options)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print the manifest, in words or as it is."""
    bundle = Bundle.open(options.bundle)
    if options.json:
        print(json.dumps(bundle.manifest.to_json(), indent=2))
    else:
        print("\n".join(_describe(bundle)))
    return 0


def check(options: argparse.Namespace) -> int:
    """Check digests and the golden answer; 1 where they differ."""
    from paligemma_edge.runtime.self_test import self_test

    result = self_test(options.bundle, device=options.device, variant=options.variant)
    print(result.summary())
    return 0 if result.passed else 1


def _check_run(options: argparse.Namespace) -> None:
    if options.stream and (options.json or options.draw):
        raise OptionError("--stream prints text alone; leave out --json and --draw, or --stream")
    if options.draw and (options.together or len(options.images) > 1):
        raise OptionError("--draw writes one picture; give one IMAGE, without --together")


def _sampling(options: argparse.Namespace) -> Sampling | None:
    from paligemma_edge.runtime.sampling import TopSampling

    if options.temperature is None:
        if options.top_k or options.top_p != 1.0:
            raise OptionError("--top-k and --top-p choose among samples; give --temperature too")
        return None
    return TopSampling(options.temperature, options.top_k, options.top_p, options.seed)


def _print_stream(model: PaliGemma, images: Images, options: argparse.Namespace) -> None:
    pieces = model.stream(
        images,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=_sampling(options),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _print_answer(model: PaliGemma, images: Sequence[str], options: argparse.Namespace) -> None:
    generation = model.generate(
        list(images),
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=_sampling(options),
    )
    if options.json:
        print(json.dumps(_as_json(images, generation), ensure_ascii=False), flush=True)
    else:
        prefix = f"{', '.join(images)}: " if len(options.images) > 1 else ""
        suffix = " [cut by --max-new-tokens]" if generation.truncated else ""
        print(f"{prefix}{generation.text}{suffix}", flush=True)
    if options.draw:
        _draw(model, images[0], generation, options.draw)


def _as_json(images: Sequence[str], generation: Generation) -> dict[str, object]:
    return {
        "image": images[0] if len(images) == 1 else list(images),
        "prompt": generation.prompt,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "truncated": generation.truncated,
        "detections": [dataclasses.asdict(d) for d in generation.answer.detections],
        "seconds": {stage: round(s, 6) for stage, s in generation.seconds.items()},
    }


def _draw(model: PaliGemma, image: str, generation: Generation, target: str) -> None:
    from paligemma_edge.runtime.draw import draw
    from paligemma_edge.runtime.image import load_image

    picture = load_image(image)
    detections = generation.answer.detections
    has_masks = model.engine.mask_decoder is not None
    masks = model.masks(detections, picture.width, picture.height) if has_masks else None
    drawn = draw(picture, detections, masks)
    try:
        drawn.save(target)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "unknown type"
        Path(target).unlink(missing_ok=True)
        raise OutputError(
            errno.EIO, f"cannot write {target}: {reason}; give a name that ends in .png or .jpg"
        ) from None


def _describe(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    model, image = manifest.model, manifest.image
    listed = set(manifest.files)
    lines = [
        f"bundle      {bundle.path}",
        f"schema      {manifest.schema_version}, written by {manifest.created_by}",
        *(f"{k:<11} {v}" for k, v in manifest.source.items()),
        f"picture     {image.size}x{image.size}, {model.image_tokens} tokens",
        f"decoder     {model.num_layers} layers of width {model.hidden_size}, "
        f"{model.vocab_size} tokens, at most {model.max_length} in a sequence",
        f"cache       {_size(model.cache_bytes(1))} a token and slot",
    ]
    for name, variant in manifest.variants.items():
        stored = sum(manifest.files[file].bytes for file in variant.files)
        lines += [
            f"variant     {name}: {variant.weight_dtype} weights, computes in "
            f"{variant.compute_dtype}, {_size(stored)} on disk, "
            f"about {_size(variant.memory_bytes)} of weights in memory",
            *(f"            {graph}: {file}" for graph, file in variant.graphs.items()),
        ]
    lines += [f"file        {r.sha256}  {r.bytes:>13,}  {n}" for n, r in manifest.files.items()]
    others = (p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file())
    unlisted = sorted(set(others) - listed - {"manifest.json"})
    lines += [f"not listed  {name} (never read)" for name in unlisted]
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
