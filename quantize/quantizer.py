"""A bundle gets more variants: read the graphs, calibrate, choose, round, write, report."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from paligemma_edge.quantize.calibration.samples import Calibration, with_answers
from paligemma_edge.quantize.fidelity.measure import DEFAULT_MAX_NEW_TOKENS, measure_fidelity
from paligemma_edge.quantize.fidelity.plot import report_files
from paligemma_edge.quantize.fidelity.questions import Question, sample_questions
from paligemma_edge.quantize.graphs.linear import linears
from paligemma_edge.quantize.graphs.prefill import PREFIX
from paligemma_edge.quantize.graphs.read_graph import read_graph
from paligemma_edge.quantize.graphs.stored_weights import read_weights
from paligemma_edge.quantize.recipes.recipe import LOSSLESS_RECIPE, Recipe
from paligemma_edge.quantize.variant.build import (
    ModelSource,
    Search,
    VariantGraphs,
    build_variant,
)
from paligemma_edge.quantize.variant.files import write_variant
from paligemma_edge.quantize.variant.passes import Graphs, TransformedGraphs
from paligemma_edge.quantize.variant.prepare import require_distinct, require_layers
from paligemma_edge.quantize.variant.search import smallest_that_keeps
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice, SchemeChoices
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity, LayerError
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.errors import BundleError, NonFiniteLogitsError, OptionError
from paligemma_edge.runtime.manifest import Manifest, Variant
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.validation import check_count, check_flag, is_number, plain


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How recipes are carried out.

    Args:
        questions: The prompts that calibrate, and that the report compares; by default those of the
            sample images.
        calibrate: Run the lossless variant on the questions first. Without it weights are rounded
            to the nearest code, in the memory of a few layers.
        report: Run both variants and report how their answers differ.
        min_agreement: The share of answers, up to 1, that must stay the same; layers get safer
            schemes until it does. CPU variants only.
        max_new_tokens: Tokens of an answer, at most.
        overwrite: Replace variants that the bundle has already.
        default: Mark the variant as the one that is used where none is named; for a single recipe.
    """

    questions: tuple[Question, ...] = field(default_factory=lambda: tuple(sample_questions()))
    calibrate: bool = True
    report: bool = True
    min_agreement: float | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    overwrite: bool = False
    default: bool = False

    def __post_init__(self) -> None:
        for name in ("calibrate", "report", "overwrite", "default"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        share = plain(self.min_agreement)
        if share is not None and not (is_number(share) and 0 < share <= 1):
            raise OptionError(f"min_agreement is {share!r}, wanted more than 0 and at most 1")
        object.__setattr__(self, "min_agreement", share)
        count = check_count("max_new_tokens", self.max_new_tokens)
        object.__setattr__(self, "max_new_tokens", count)


def quantize(
    bundle_path: str | os.PathLike[str],
    recipes: Sequence[Recipe],
    options: QuantizeOptions,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Fidelity]:
    """Add one variant to a bundle for each recipe; each is added whole or not at all.

    Args:
        bundle_path: The bundle's folder. It must have a lossless variant.
        recipes: What the variants are built by, from `load_recipe`.
        options: What calibrates, whether to report, and what may be replaced.
        progress: Called with the stage, how much of it is done, and how much there is.
        note: Called with a line for each deviation from a recipe, such as layers that took a
            safer scheme or stay in float32.

    Returns:
        The reports, if `options.report` is set; variants for CUDA have none.

    Raises:
        OptionError: A recipe does not fit the model, or a weight holds NaN or Inf.
        BundleError: The bundle is damaged or has no lossless variant.
        OutputError: The variant cannot be written.

    Example:
        >>> quantize("mix.bundle", [load_recipe("cpu-int4")], QuantizeOptions())
    """
    report_progress = progress or no_progress
    bundle = Bundle.open(bundle_path)
    lossless = _lossless(bundle.manifest)
    _check_options(options, len(recipes))
    require_distinct(recipe.name for recipe in recipes)
    for recipe in recipes:
        _require_new(bundle, recipe, options)
        _require_search(recipe, options)
    graphs = _read_graphs(bundle, lossless)
    for recipe in recipes:
        require_layers(graphs, recipe)
    answers = None
    if options.calibrate or options.min_agreement is not None:
        answers = _lossless_answers(bundle, lossless, graphs, options, report_progress)
    job = _Job(bundle, lossless, graphs, options, answers, report_progress, note or _no_note)
    reports = [job.add(recipe) for recipe in recipes]
    return [report for report in reports if report is not None]


def _no_note(line: str) -> None:
    """Leave a line out."""


@dataclass(frozen=True)
class _Job:
    """A bundle to which variants are added, one recipe after another."""

    bundle: Bundle
    lossless: str
    graphs: Graphs
    options: QuantizeOptions
    answers: Calibration | None  # of the lossless variant
    progress: Progress
    note: Callable[[str], None]

    def add(self, recipe: Recipe) -> Fidelity | None:
        """Add the variant of a recipe; its report, where there is one."""
        manifest = self.bundle.manifest
        built = build_variant(
            ModelSource(self.graphs, manifest.model, manifest.tokenizer.image_id),
            recipe,
            self.answers if self.options.calibrate else None,
            self.progress,
            self._search(),
        )
        for line in built.notes:
            self.note(f"{recipe.name}: {line}")
        self._write(recipe, built)
        return self._report(recipe, built)

    def _search(self) -> Search | None:
        """Chooses safer schemes until enough answers stay the same, if that is requested."""
        share, answers = self.options.min_agreement, self.answers
        if share is None or answers is None:
            return None

        def search(
            recipe: Recipe, transformed: TransformedGraphs, choices: SchemeChoices
        ) -> SchemeChoices:
            return smallest_that_keeps(
                self.bundle,
                recipe,
                transformed,
                choices,
                answers,
                min_agreement=share,
                progress=self.progress,
            )

        return search

    def _write(self, recipe: Recipe, built: VariantGraphs) -> None:
        name, manifest = recipe.name, self.bundle.manifest
        source = (*manifest.variants[self.lossless].files, manifest.tokenizer.file)
        overwrite = self.options.overwrite
        # A variant that is made anew stays what the maker marked it as.
        default = self.options.default or manifest.default_variant == name
        with extend_bundle(self.bundle, name, overwrite=overwrite, made_from=source) as writer:
            variant = write_variant(writer, recipe, built.graphs, built.changes, self.progress)
            writer.finish(
                lambda m: _with_variant(m, name, variant, default=default),
                lambda _: self.progress(f"recording {name}", 0, 1),
            )
        if manifest.adapters:
            self.note(
                f"{name}: adapters of the bundle are not made for it, add them again with "
                f"`paligemma-edge adapter --overwrite`: {', '.join(manifest.adapters)}"
            )

    def _report(self, recipe: Recipe, built: VariantGraphs) -> Fidelity | None:
        if not self.options.report or recipe.device == "cuda":
            return None
        report = measure_fidelity(
            self.bundle.path,
            recipe.name,
            self.lossless,
            self.options.questions,
            max_new_tokens=self.options.max_new_tokens,
            recipe=recipe.about,
            layer_errors=[layer_error(choice) for choice in built.choices.values()],
            notes=built.notes,
            progress=self.progress,
        )
        amend_bundle(Bundle.open(self.bundle.path), report_files(report), lambda m: m)
        return report


def _with_variant(manifest: Manifest, name: str, variant: Variant, *, default: bool) -> Manifest:
    return dataclasses.replace(
        manifest,
        variants={**manifest.variants, name: variant},
        default_variant=name if default else manifest.default_variant,
    )


def _lossless_answers(
    bundle: Bundle, lossless: str, graphs: Graphs, options: QuantizeOptions, progress: Progress
) -> Calibration:
    """What the lossless variant answers; OptionError names the weight if it computes NaN or Inf."""
    try:
        return with_answers(
            bundle.path, lossless, options.questions, options.max_new_tokens, progress
        )
    except NonFiniteLogitsError:
        read_weights(graphs.values())  # names a weight with NaN or Inf, if that is the cause
        raise


def layer_error(choice: SchemeChoice) -> LayerError:
    """A line of the report."""
    graphs = {"vision": contract.VISION_ENCODER, PREFIX.rstrip("."): contract.PREFILL}
    first = choice.layer.partition(".")[0]
    return LayerError(
        graph=graphs.get(first, first),
        layer=choice.layer,
        scheme=choice.scheme,
        relative_error=None if math.isnan(choice.error) else choice.error,
    )


def _lossless(manifest: Manifest) -> str:
    for name, variant in manifest.variants.items():
        if variant.recipe == LOSSLESS_RECIPE:
            return name
    raise BundleError(
        f"the bundle has only {', '.join(manifest.variants)}, which are quantized already; "
        "wanted a lossless variant: export it again, or export with --variant"
    )


def _require_new(bundle: Bundle, recipe: Recipe, options: QuantizeOptions) -> None:
    if recipe.name in bundle.manifest.variants and not options.overwrite:
        raise OptionError(
            f"bundle {bundle.path} has a variant {recipe.name} and it is kept; give --overwrite"
        )


def _require_search(recipe: Recipe, options: QuantizeOptions) -> None:
    if options.min_agreement is not None and recipe.device == "cuda":
        raise OptionError(
            f"min_agreement runs the variants that it searches, and those of {recipe.name} run "
            "only on a GPU; leave it out"
        )


def _check_options(options: QuantizeOptions, recipe_count: int) -> None:
    if options.default and recipe_count != 1:
        raise OptionError(
            f"{recipe_count} recipes are given and one variant alone can be the default; "
            "name one recipe with it"
        )
    if not options.questions:
        raise OptionError("there is no question to calibrate with, wanted at least one")


def _read_graphs(bundle: Bundle, variant: str) -> dict[str, ir.Model]:
    """The lossless graphs; weights stay in their files until they are used."""
    entry = bundle.manifest.variants[variant]
    bundle.verify(entry.files)
    graphs = {name: read_graph(bundle, graph) for name, graph in entry.graphs.items()}
    for name, model in graphs.items():
        if name != contract.MASK_DECODER and not linears(model):
            raise BundleError(f"bundle {bundle.path}: {name} has no layers; export it again")
    return graphs
