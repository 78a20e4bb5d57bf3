"""The command `inspect`: what a bundle holds, in words or as its manifest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity
from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.cli.device_options import add_bundle, add_max_batch_size, add_max_length
from paligemma_edge.runtime.cli.prepack import describe_prepacked
from paligemma_edge.runtime.cli.table import aligned
from paligemma_edge.runtime.cli.verbosity import is_verbose
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.errors import BundleError, MissingExtraError
from paligemma_edge.runtime.loading.memory_estimate import estimate_memory
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.size_text import size_text
from paligemma_edge.runtime.system.console import Console

_EPILOG = """\
examples:
  paligemma-edge inspect mix.bundle
  paligemma-edge inspect mix.bundle --max-batch-size 16 --max-length 512
  paligemma-edge inspect mix.bundle --json
"""
_HEAD = ("variant", "device", "weights", "computes in", "on disk", "memory", "agreement")
_NUMBERS = (4, 5, 6)  # columns of the table
_DIGESTS = "config_sha256"  # in the manifest's `source`, of interest to few


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = "%(prog)s [options] BUNDLE"
    parser.description = (
        "Say what a bundle holds: where it comes from, and the size, memory and agreement of its\n"
        "variants. With --verbose also the details of memory and of each fidelity report."
    )
    parser.epilog = _EPILOG
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.add_argument("--files", action="store_true", help="list all files and their digests")
    add_max_batch_size(parser, "answers at a time that memory is forecast for; default: 4")
    add_max_length(parser)
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    """Print the manifest, in words or as it is."""
    bundle = open_bundle(options.bundle)
    plan = CachePlan.complete(bundle.manifest.model, options.max_batch_size, options.max_length)
    console = Console.standard()
    if options.json:
        console.exact(json.dumps(bundle.manifest.to_json(), indent=2) + "\n")
        return 0
    console.print(str(bundle.path), *aligned(_origin(bundle.manifest)))
    reports, damaged = _reports(bundle)
    name, reason = _default(bundle.manifest, options)
    console.print("", *_table(bundle.manifest, plan, reports, name))
    console.print("", *aligned(_remarks(bundle, plan, reports, reason)), *damaged)
    if is_verbose():
        console.print(*_details(bundle.manifest, plan, reports))
    if options.files:
        console.print("", *_files(bundle))
    return 0


def _origin(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What the bundle was made from, and the model in it."""
    model, image = manifest.model, manifest.image
    yield from ((name, text) for name, text in manifest.source.items() if name != _DIGESTS)
    if manifest.licenses:
        yield "licence", ", ".join(manifest.licenses)
    if manifest.note:
        yield "note", manifest.note
    yield "image", f"{image.size} x {image.size} pixels, {model.image_tokens} tokens"
    yield (
        "decoder",
        f"{model.num_layers} layers of width {model.hidden_size:,}, a vocabulary of "
        f"{model.vocab_size:,} tokens, sequences of at most {model.max_length:,}",
    )
    yield "written by", f"{manifest.created_by}, schema {manifest.schema_version}"


def _table(
    manifest: Manifest, plan: CachePlan, reports: Mapping[str, Fidelity], default: str | None
) -> Iterator[str]:
    """A row for each variant."""
    references = {report.reference for report in reports.values()}
    rows = [(*_HEAD, "")]
    for name, variant in manifest.variants.items():
        report = reports.get(name)
        agreement = "reference" if name in references else "-"
        rows.append(
            (
                name,
                variant.device,
                variant.weight_dtype,
                variant.compute_dtype,
                size_text(sum(manifest.files[file].bytes for file in variant.files)),
                size_text(estimate_memory(manifest, variant, plan).total),
                agreement if report is None else f"{report.same_answers:.1%}",
                "default here" if name == default else "",
            )
        )
    return aligned(rows, _NUMBERS)


def _remarks(
    bundle: Bundle, plan: CachePlan, reports: Mapping[str, Fidelity], reason: str
) -> Iterator[tuple[str, str]]:
    """What the columns mean, and what else is in the bundle."""
    yield "default", reason
    yield (
        "memory",
        f"forecast for {plan.max_batch_size} answers at a time of at most {plan.max_length} tokens",
    )
    for reference, questions in {(r.reference, r.questions): None for r in reports.values()}:
        yield "agreement", f"answers that are those of {reference}, of {questions} questions"
    yield from (("adapter", line) for line in _adapters(bundle.manifest))
    yield from (("prepacked", line) for line in describe_prepacked(bundle))


def _default(manifest: Manifest, options: argparse.Namespace) -> tuple[str | None, str]:
    """The variant that is used here unless another is named, and why."""
    plan = CachePlan.of(manifest.model, options.max_batch_size, options.max_length)
    try:
        from paligemma_edge.runtime.loading.variants import choose_variant

        name, _, reason = choose_variant(manifest, plan=plan)
        return name, reason
    except (MissingExtraError, BundleError) as error:
        return None, f"none here: {error}"


def _reports(bundle: Bundle) -> tuple[dict[str, Fidelity], list[str]]:
    """The fidelity report of each variant that has one; a damaged one hides nothing else."""
    reports, damaged = {}, []
    for name in bundle.manifest.variants:
        try:
            if (report := Fidelity.find(bundle, name)) is not None:
                reports[name] = report
        except BundleError as error:
            damaged.append(f"the fidelity report of {name} is not readable: {error}")
    return reports, damaged


def _details(manifest: Manifest, plan: CachePlan, reports: Mapping[str, Fidelity]) -> Iterator[str]:
    for name, variant in manifest.variants.items():
        yield ""
        yield name
        yield f"  memory: {estimate_memory(manifest, variant, plan).describe()}"
        if name in reports:
            yield from (f"  {line}" for line in reports[name].summary())


def _adapters(manifest: Manifest) -> Iterator[str]:
    for name, lora in manifest.adapters.items():
        sizes = [manifest.files[file].bytes for file in lora.files.values()]
        yield (
            f"{name}: from {lora.source}, rank {lora.rank}, changes {', '.join(lora.graphs)}; "
            f"for {', '.join(lora.files)}; {size_text(max(sizes))} each"
        )


def _files(bundle: Bundle) -> Iterator[str]:
    """Every file with its size and digest, and those that are never read."""
    manifest = bundle.manifest
    if _DIGESTS in manifest.source:
        yield f"{manifest.source[_DIGESTS]}  config.json of the checkpoint"
    rows = ((r.sha256, f"{r.bytes:,}", name) for name, r in manifest.files.items())
    yield from aligned((("sha256", "bytes", "file"), *rows), numbers=(1,))
    others = (p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file())
    unlisted = sorted(set(others) - set(manifest.files) - {"manifest.json"})
    yield from (f"{name}: not listed in the manifest, and never read" for name in unlisted)
