"""Which run a journal belongs to: the files and options that decide its answers."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.loading.options import cache_plan_for, requested_plan
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.run.options import RunOptions

_RECORDS = 4  # raised where the fields of records change, so that no file mixes two forms
_SAMPLING = tuple(TopSampling.__dataclass_fields__)
_MORE = ("max_new_tokens", "regex", "unconstrained", "labels", "min_confidence", "every")


def run_identity(options: RunOptions) -> dict[str, Any]:
    """The bundle's files that take part, the variant, prompts, paths and how they are answered.

    Paths are as they were given: a folder among them may have grown. What cannot change an
    answer, such as the number of threads, is not in it. Errors are those of `open_bundle` and of
    the choice of a variant.
    """
    bundle = open_bundle(options.bundle)
    manifest, files = bundle.manifest, bundle.manifest.files
    requested = requested_plan(manifest, options.load)
    name, variant, _ = choose_variant(manifest, options.device, options.variant, requested)
    taking_part = [*bundle.variant_files(variant), manifest.tokenizer.file]
    adapter = manifest.adapters.get(options.adapter or "")
    if adapter is not None and name in adapter.files:
        taking_part.append(adapter.files[name])
    digest = hashlib.sha256("".join(files[file].sha256 for file in taking_part).encode())
    plan = cache_plan_for(manifest, variant, options.load)
    return {
        "records": _RECORDS,
        "max_length": plan and plan.max_length,
        "bundle": digest.hexdigest()[:16],
        "variant": name,
        "prompts": options.prompts,
        "paths": [os.fspath(path) for path in options.paths],
        "questions": None if options.questions is None else os.fspath(options.questions),
        "images": None if options.images is None else os.fspath(options.images),
        "draw": None if options.draw is None else os.path.abspath(options.draw),  # noqa: PTH100
        "choices": None if options.choices is None else list(options.choices),
        **{option: getattr(options, option) for option in (*_SAMPLING, *_MORE)},
    }
