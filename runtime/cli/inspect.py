"""The command `inspect`: what a bundle holds, in words or as its manifest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli.device_options import add_plan_options
from paligemma_edge.runtime.cli.prepack import describe_prepacked
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.loading.memory_estimate import estimate_memory
from paligemma_edge.runtime.manifest import Manifest

_EPILOG = "example:\n  paligemma-edge inspect mix.bundle"


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = "Say what a bundle holds: variants, sizes, memory, origin, digests."
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    add_plan_options(parser)
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    """Print the manifest, in words or as it is."""
    bundle = Bundle.open(options.bundle)
    plan = CachePlan.complete(bundle.manifest.model, options.max_batch, options.max_length)
    if options.json:
        print(json.dumps(bundle.manifest.to_json(), indent=2))
    else:
        print("\n".join(_describe(bundle, plan)))
    return 0


def _describe(bundle: Bundle, plan: CachePlan) -> list[str]:
    manifest = bundle.manifest
    model, image = manifest.model, manifest.image
    listed = set(manifest.files)
    lines = [
        f"bundle      {bundle.path}",
        f"schema      {manifest.schema_version}, written by {manifest.created_by}",
        *(f"{k:<11} {v}" for k, v in manifest.source.items()),
        *([f"note        {manifest.note}"] if manifest.note else []),
        *([f"licence     {', '.join(manifest.licenses)}"] if manifest.licenses else []),
        f"image       {image.size}x{image.size}, {model.image_tokens} tokens",
        f"decoder     {model.num_layers} layers of width {model.hidden_size}, "
        f"{model.vocab_size} tokens, at most {model.max_length} in a sequence",
        f"memory      estimated for {plan.max_batch_size} answers at once "
        f"of {plan.max_length} tokens",
    ]
    for name, variant in manifest.variants.items():
        stored = sum(manifest.files[file].bytes for file in variant.files)
        lines += [
            f"variant     {name}: {variant.weight_dtype} weights, computes in "
            f"{variant.compute_dtype}, {_size(stored)} on disk",
            f"            {estimate_memory(manifest, variant, plan).describe()}",
            *(f"            {graph}: {file}" for graph, file in variant.graphs.items()),
            *(f"            {line}" for line in _fidelity(bundle, name)),
        ]
    lines += [f"adapter     {line}" for line in _adapters(manifest)]
    lines += [f"prepacked   {line}" for line in describe_prepacked(bundle)]
    lines += [f"file        {r.sha256}  {r.bytes:>13,}  {n}" for n, r in manifest.files.items()]
    others = (p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file())
    unlisted = sorted(set(others) - listed - {"manifest.json"})
    lines += [f"not listed  {name} (never read)" for name in unlisted]
    return lines


def _adapters(manifest: Manifest) -> Iterator[str]:
    for name, lora in manifest.adapters.items():
        sizes = [manifest.files[file].bytes for file in lora.files.values()]
        yield (
            f"{name}: from {lora.source}, rank {lora.rank}, changes {', '.join(lora.graphs)}; "
            f"for {', '.join(lora.files)}; {_size(max(sizes))} each"
        )


def _fidelity(bundle: Bundle, variant: str) -> list[str]:
    """The summary of a variant's report; a damaged report hides nothing else."""
    from paligemma_edge.runtime.bundle.fidelity import Fidelity

    try:
        report = Fidelity.find(bundle, variant)
    except BundleError as error:
        return [f"fidelity report not readable: {error}"]
    return [] if report is None else report.summary()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
