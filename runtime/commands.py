"""What `run`, `inspect` and `check` do: call the library, print what it says."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.errors import (
    BundleError,
    ImageError,
    MissingExtraError,
    OptionError,
    OutputError,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from paligemma_edge.runtime.model import Generation, Images, PaliGemma
    from paligemma_edge.runtime.sampling import Sampling


_DRAWN_AS: Mapping[str, str] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
}


def run(options: argparse.Namespace) -> int:
    """Answer the prompt about each picture, or about all of them together.

    A picture that cannot be read is told, the others are answered, and the result is 1.
    """
    from paligemma_edge.runtime.model import PaliGemma

    _check_run(options)
    sampling = _sampling(options)
    model = PaliGemma(options.bundle, options.device, options.variant, threads=options.threads)
    answer = _print_stream if options.stream else _print_answer
    groups = [options.images] if options.together else [[image] for image in options.images]
    code = 0
    for images in groups:
        try:
            answer(model, images, options, sampling)
        except ImageError as error:
            print(f"paligemma-edge: {error}", file=sys.stderr, flush=True)
            code = 1
    return code


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

    result = self_test(options.bundle, options.device, options.variant, threads=options.threads)
    print(result.summary())
    for line in _primed(Bundle.open(options.bundle)):
        print(f"primed: {line}")
    return 0 if result.passed else 1


def _check_run(options: argparse.Namespace) -> None:
    """Find before the model is opened what would fail after its answer."""
    from paligemma_edge.runtime.device import check_count

    check_count("--max-new-tokens", options.max_new_tokens)
    if options.stream and (options.json or options.draw):
        raise OptionError("--stream prints text alone; leave out --json and --draw, or --stream")
    if options.draw and (options.together or len(options.images) > 1):
        raise OptionError("--draw writes one picture; give one IMAGE, without --together")
    if options.draw:
        _check_target(Path(options.draw))


def _check_target(target: Path) -> None:
    if target.suffix.lower() not in _DRAWN_AS:
        raise OptionError(f"--draw {target}: wanted a name that ends in {', '.join(_DRAWN_AS)}")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not target.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"there is no folder {target.parent}")
    except OSError as error:
        raise _unwritable(target, error) from None


def _sampling(options: argparse.Namespace) -> Sampling | None:
    from paligemma_edge.runtime.sampling import TopSampling

    if options.temperature is None:
        if options.top_k or options.top_p != 1.0:
            raise OptionError("--top-k and --top-p choose among samples; give --temperature too")
        return None
    return TopSampling(options.temperature, options.top_k, options.top_p, options.seed)


def _print_stream(
    model: PaliGemma, images: Images, options: argparse.Namespace, sampling: Sampling | None
) -> None:
    pieces = model.stream(
        images, options.prompt, max_new_tokens=options.max_new_tokens, sampling=sampling
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _print_answer(
    model: PaliGemma, images: Sequence[str], options: argparse.Namespace, sampling: Sampling | None
) -> None:
    generation = model.generate(
        list(images), options.prompt, max_new_tokens=options.max_new_tokens, sampling=sampling
    )
    if options.json:
        # In ASCII, which is JSON on every terminal and for every name of a file.
        print(json.dumps(_as_json(images, generation)), flush=True)
    else:
        prefix = f"{', '.join(images)}: " if len(options.images) > 1 else ""
        suffix = " [cut by --max-new-tokens]" if generation.truncated else ""
        print(f"{prefix}{generation.text}{suffix}", flush=True)
    if options.draw:
        _draw(model, images[0], generation, Path(options.draw))


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


def _draw(model: PaliGemma, image: str, generation: Generation, target: Path) -> None:
    from paligemma_edge.runtime.draw import draw
    from paligemma_edge.runtime.image import load_image

    picture = load_image(image)
    detections = generation.answer.detections
    has_masks = model.engine.mask_decoder is not None
    masks = model.masks(detections, picture.width, picture.height) if has_masks else None
    if masks is None and any(d.codes is not None for d in detections):
        print(
            "paligemma-edge: the answer has masks, but the bundle has no mask decoder, so boxes "
            "alone are drawn; export it with --mask-decoder vae-oid.npz",
            file=sys.stderr,
        )
    _write(target, _encoded(draw(picture, detections, masks), target))


def _encoded(picture: Image, target: Path) -> bytes:
    kind, file = _DRAWN_AS[target.suffix.lower()], io.BytesIO()
    try:
        picture.save(file, kind)
    except (OSError, ValueError):  # such as a WebP of more than 16383 pixels a side
        raise OutputError(
            errno.EINVAL,
            f"cannot write {target}: {picture.width} x {picture.height} pixels are too large for "
            f"{kind}; give a name that ends in .png",
        ) from None
    return file.getvalue()


def _write(target: Path, data: bytes) -> None:
    """Put a whole file in place, or leave what is there."""
    place = target.resolve()
    draft = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(data)
        draft.replace(place)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _unwritable(target: Path, error: OSError) -> OutputError:
    todo = "free some space" if error.errno == errno.ENOSPC else "give another FILE to --draw"
    return OutputError(error.errno, f"cannot write {target}: {error.strerror}; {todo}")


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
            f"{variant.compute_dtype}, {_size(stored)} on disk",
            f"            {_size(variant.memory_bytes)} of weights in {variant.compute_dtype}; "
            "ONNX Runtime holds more while it loads them",
            *(f"            {graph}: {file}" for graph, file in variant.graphs.items()),
            *(f"            {line}" for line in _fidelity(bundle, name)),
        ]
    lines += [f"primed      {line}" for line in _primed(bundle)]
    lines += [f"file        {r.sha256}  {r.bytes:>13,}  {n}" for n, r in manifest.files.items()]
    others = (p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file())
    unlisted = sorted(set(others) - listed - {"manifest.json"})
    lines += [f"not listed  {name} (never read)" for name in unlisted]
    return lines


def _fidelity(bundle: Bundle, variant: str) -> list[str]:
    """What the variant's report says; a report that is damaged hides nothing else."""
    from paligemma_edge.runtime.fidelity import Fidelity

    try:
        report = Fidelity.find(bundle, variant)
    except BundleError as error:
        return [f"fidelity report not readable: {error}"]
    return [] if report is None else report.summary()


def _primed(bundle: Bundle) -> list[str]:
    """Which variants were primed, and where; without ONNX Runtime none of them is of use."""
    if not bundle.manifest.primed:
        return []
    try:
        from paligemma_edge.runtime import primed

        return primed.describe(bundle)
    except MissingExtraError:
        return [f"{name}, not used: no ONNX Runtime is here" for name in bundle.manifest.primed]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
