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
from paligemma_edge.quantize.graphs.stored import read_weights
from paligemma_edge.quantize.recipes.recipe import LOSSLESS, Recipe
from paligemma_edge.quantize.variant.build import VariantGraphs, build_graphs, scheme_choices
from paligemma_edge.quantize.variant.files import describe_variant, write_variant
from paligemma_edge.quantize.variant.passes import Graphs
from paligemma_edge.quantize.variant.prepare import (
    require_distinct,
    require_layers,
    transform_and_calibrate,
    without_calibration,
)
from paligemma_edge.quantize.variant.search import smallest_that_keeps
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity, LayerError
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError
from paligemma_edge.runtime.manifest import Manifest

Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How recipes are carried out.

    `questions` calibrate and are what the report is about. Without calibration weights are
    rounded to the nearest code, in the memory of a few layers; with it the lossless variant runs.
    `min_agreement` is the share of answers that must stay the same.
    """

    questions: tuple[Question, ...] = field(default_factory=lambda: tuple(sample_questions()))
    calibrate: bool = True
    report: bool = True
    min_agreement: float | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    overwrite: bool = False


def quantize(
    bundle_path: str | os.PathLike[str],
    recipes: Sequence[Recipe],
    options: QuantizeOptions,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Fidelity]:
    """Add a variant for each recipe to a bundle; its reports, if they were asked for.

    `note` is told what the recipes did not say: layers that took a safer scheme, or stay float32.
    OptionError for a recipe that does not fit the model, BundleError for a bundle without a
    lossless variant, OutputError where it cannot be written. Each variant is added whole or not
    at all.
    """
    tell = progress or (lambda *_: None)
    bundle = Bundle.open(bundle_path)
    lossless = _lossless(bundle.manifest)
    _check_options(options)
    require_distinct(recipe.name for recipe in recipes)
    for recipe in recipes:
        _require_new(bundle, recipe, options)
        _require_search(recipe, options)
    graphs = _read_graphs(bundle, lossless)
    for recipe in recipes:
        require_layers(graphs, recipe)
    answers = None
    if options.calibrate or options.min_agreement is not None:
        answers = _lossless_answers(bundle, lossless, graphs, options, tell)
    reports = []
    for recipe in recipes:
        work = _Work(bundle, lossless, recipe, options, answers, tell, note or (lambda _: None))
        found = work.run(graphs)
        reports += [found] if found is not None else []
    return reports


@dataclass(frozen=True)
class _Work:
    """One recipe on its way into a bundle."""

    bundle: Bundle
    lossless: str
    recipe: Recipe
    options: QuantizeOptions
    answers: Calibration | None
    tell: Progress
    note: Callable[[str], None]

    def run(self, graphs: Graphs) -> Fidelity | None:
        recipe, config = self.recipe, self.bundle.manifest.model
        known = self.answers if self.options.calibrate else None
        if known is None:
            recipe = without_calibration(recipe)
        cured = transform_and_calibrate(graphs, config, recipe, known, self.tell)
        self.tell(f"choosing schemes of {recipe.name}", 0, 1)
        searched = self.options.min_agreement is not None
        choices = scheme_choices(cured, recipe, measure=known is not None or searched)
        if self.options.min_agreement is not None and self.answers is not None:
            choices = smallest_that_keeps(
                self.bundle,
                recipe,
                cured,
                choices,
                self.answers,
                min_agreement=self.options.min_agreement,
                tell=self.tell,
            )
        made = build_graphs(
            cured,
            recipe,
            choices,
            config=config,
            image_id=self.bundle.manifest.tokenizer.image_id,
            calibration=known,
            tell=self.tell,
        )
        for line in made.notes:
            self.note(f"{recipe.name}: {line}")
        self._write(recipe, made)
        return self._report(recipe, made)

    def _write(self, recipe: Recipe, made: VariantGraphs) -> None:
        name, graphs = recipe.name, made.graphs
        manifest = self.bundle.manifest
        source = (*manifest.variants[self.lossless].files, manifest.tokenizer.file)
        overwrite = self.options.overwrite
        with extend_bundle(self.bundle, name, overwrite=overwrite, made_from=source) as writer:
            write_variant(writer, recipe, graphs, made.changes, self.tell)
            variant = describe_variant(recipe, graphs, writer.files())
            writer.finish(
                lambda m: dataclasses.replace(m, variants={**m.variants, name: variant}),
                lambda _: self.tell(f"recording {name}", 0, 1),
            )
        if manifest.adapters:
            self.note(
                f"{name}: adapters of the bundle are not made for it, add them again with "
                f"`paligemma-edge adapter --overwrite`: {', '.join(manifest.adapters)}"
            )

    def _report(self, recipe: Recipe, made: VariantGraphs) -> Fidelity | None:
        if not self.options.report or recipe.device == "cuda":
            return None
        report = measure_fidelity(
            self.bundle.path,
            recipe.name,
            self.lossless,
            self.options.questions,
            max_new_tokens=self.options.max_new_tokens,
            recipe=recipe.about,
            layer_errors=[layer_error(choice) for choice in made.choices.values()],
            notes=made.notes,
            progress=lambda stage: self.tell(f"report: {stage}", 0, 1),
        )
        amend_bundle(Bundle.open(self.bundle.path), report_files(report), lambda m: m)
        return report


def _lossless_answers(
    bundle: Bundle, lossless: str, graphs: Graphs, options: QuantizeOptions, tell: Progress
) -> Calibration:
    """What the lossless variant answers; where it computes NaN, by which weight that is."""
    try:
        return with_answers(bundle.path, lossless, options.questions, options.max_new_tokens, tell)
    except DeviceError:
        read_weights(graphs.values())
        raise


def layer_error(choice: SchemeChoice) -> LayerError:
    """A line of the report."""
    parts = {"vision": contract.VISION_ENCODER, PREFIX.rstrip("."): contract.PREFILL}
    part = choice.layer.partition(".")[0]
    return LayerError(
        graph=parts.get(part, part),
        layer=choice.layer,
        scheme=choice.scheme,
        relative_error=None if math.isnan(choice.error) else choice.error,
    )


def _lossless(manifest: Manifest) -> str:
    for name, variant in manifest.variants.items():
        if variant.recipe == LOSSLESS:
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
            f"min_agreement asks variants that are being searched, and those of {recipe.name} run "
            "on a GPU alone; leave it out"
        )


def _check_options(options: QuantizeOptions) -> None:
    agreement = options.min_agreement
    if agreement is not None and not 0 < agreement <= 1:
        raise OptionError(f"min_agreement is {agreement}, wanted more than 0 and at most 1")
    if not options.questions:
        raise OptionError("there is no question to calibrate with, wanted at least one")


def _read_graphs(bundle: Bundle, variant: str) -> dict[str, ir.Model]:
    """The lossless graphs; weights stay in their files until they are used."""
    found = bundle.manifest.variants[variant]
    bundle.verify(found.files)
    graphs = {name: ir.load(bundle.file(graph)) for name, graph in found.graphs.items()}
    for name, model in graphs.items():
        if name != contract.MASK_DECODER and not linears(model):
            raise BundleError(f"bundle {bundle.path}: {name} has no layers; export it again")
    return graphs
