"""Values that float16 cannot hold are found, and their layers computed in float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.calibration.calibrate import CalibrationSample
from paligemma_edge.quantize.calibration.ranges import (
    LIMIT,
    Range,
    overflowing,
    range_notes,
    scan_ranges,
)
from paligemma_edge.quantize.graphs.linear import Linear, linears
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.quantize.transforms.changes import DividedOutputs, ScaledInputs
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError, OptionError
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import Manifest
from tests.helpers.half_graphs import ANSWER, IDS, Array, answers, emulate, load

HALF = ir.DataType.FLOAT16
UP, DOWN = "decoder.layers.1.up_proj", "decoder.layers.1.down_proj"
CHANNEL = 7
FACTOR = 3e5


@pytest.fixture(scope="module")
def manifest(shapes_bundle: Path) -> Manifest:
    return Bundle.open(shapes_bundle).manifest


@pytest.fixture(scope="module")
def pixels(manifest: Manifest, shapes_images: Path) -> Array:
    return pixel_values(load_image(shapes_images / "00.png"), manifest.image)


def scan(graphs: dict[str, ir.Model], manifest: Manifest, pixels: Array) -> list[Range]:
    return scan_ranges(graphs, manifest.model, [pixels], [CalibrationSample(0, IDS, (ANSWER, 1))])


def layer(graphs: dict[str, ir.Model], name: str) -> Linear:
    graph = "vision_encoder" if name.startswith("vision") else "decoder"
    return next(found for found in linears(graphs[graph]) if found.name == name)


def scale_row(graphs: dict[str, ir.Model], name: str, row: int, factor: float) -> None:
    found = layer(graphs, name)
    divisors = np.ones(found.out_features, np.float32)
    divisors[row] /= factor
    found.change(DividedOutputs(divisors))


def scale_column(graphs: dict[str, ir.Model], name: str, column: int, factor: float) -> None:
    found = layer(graphs, name)
    scales = np.ones(found.in_features, np.float32)
    scales[column] *= factor
    found.change(ScaledInputs(scales))


def planted(bundle: Path) -> dict[str, ir.Model]:
    """One channel between up_proj and down_proj is huge; the function is the same."""
    graphs = load(bundle)
    scale_row(graphs, UP, CHANNEL, FACTOR)
    scale_column(graphs, DOWN, CHANNEL, 1 / FACTOR)
    return graphs


def test_a_huge_channel_is_kept_in_float32_and_the_answer_stays(
    shapes_bundle: Path, manifest: Manifest, pixels: Array, tmp_path: Path
) -> None:
    config, batch = manifest.model, pixels[None]
    exact = answers(load(shapes_bundle), config, batch, tmp_path / "exact")
    blind, scanned = planted(shapes_bundle), planted(shapes_bundle)
    kept = overflowing(scan(scanned, manifest, pixels))
    assert set(kept) == {UP, DOWN}
    for model in blind.values():
        to_half(model, HALF)
        emulate(model, HALF)
    for model in scanned.values():
        to_half(model, HALF, keep_float=kept)
        emulate(model, HALF)
    assert not np.isfinite(answers(blind, config, batch, tmp_path / "blind")).all()
    logits = answers(scanned, config, batch, tmp_path / "scanned")
    np.testing.assert_allclose(logits, exact, rtol=0, atol=2e-2)


def test_the_sample_model_keeps_nothing_in_float32(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    ranges = scan(load(shapes_bundle), manifest, pixels)
    assert overflowing(ranges) == {}
    assert all(0 < found.largest < 2000 for found in ranges)
    values = {found.value for found in ranges}
    assert {"last_hidden_state", "image_features", "present.0.key", "logits"} <= values


def test_every_layer_is_watched_at_its_input_and_its_product(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    graphs = load(shapes_bundle)
    ranges = {(found.graph, found.value) for found in scan(graphs, manifest, pixels)}
    for name in ("vision_encoder", "decoder"):
        for found in linears(graphs[name]):
            assert (name, found.input.name) in ranges
            assert (name, found.node.outputs[0].name) in ranges


def test_the_largest_value_is_that_of_all_runs(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    graphs = load(shapes_bundle)
    questions = [CalibrationSample(0, IDS), CalibrationSample(0, (2, 5, 108))]
    both = scan_ranges(graphs, manifest.model, [pixels], questions)
    each = [scan_ranges(graphs, manifest.model, [pixels], [one]) for one in questions]
    for found, first, second in zip(both, *each, strict=True):
        assert found.largest == pytest.approx(max(first.largest, second.largest), rel=1e-4)


def test_scanning_leaves_the_graphs_as_they_are(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    graphs = load(shapes_bundle)
    before = {name: len(model.graph) for name, model in graphs.items()}
    scan(graphs, manifest, pixels)
    assert {name: len(model.graph) for name, model in graphs.items()} == before


def test_what_attention_reads_cannot_stay_in_float32(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    graphs = load(shapes_bundle)
    scale_row(graphs, "decoder.layers.2.qkv_proj", 0, 1e6)
    with pytest.raises(OptionError, match=r"decoder.layers.2.qkv_proj would put .* bfloat16"):
        overflowing(scan(graphs, manifest, pixels))


def test_attention_of_the_vision_encoder_can(
    shapes_bundle: Path, manifest: Manifest, pixels: Array, tmp_path: Path
) -> None:
    graphs = load(shapes_bundle)
    values = 2 * 192 + 3  # a channel of v
    scale_row(graphs, "vision.layers.1.qkv_proj", values, 1e6)
    bias = layer(graphs, "vision.layers.1.qkv_proj").bias
    assert bias is not None
    scale_column(graphs, "vision.layers.1.out_proj", 3, 1e-6)
    kept = overflowing(scan(graphs, manifest, pixels))
    assert set(kept) == {"vision.layers.1.qkv_proj", "vision.layers.1.out_proj"}
    for model in graphs.values():
        to_half(model, HALF, keep_float=kept)
        emulate(model, HALF)
    assert np.isfinite(answers(graphs, manifest.model, pixels[None], tmp_path / "kept")).all()


def test_finite_weights_that_compute_inf_are_refused(
    shapes_bundle: Path, manifest: Manifest, pixels: Array
) -> None:
    graphs = load(shapes_bundle)
    scale_row(graphs, UP, CHANNEL, 1e30)
    scale_column(graphs, DOWN, CHANNEL, 1e30)
    with pytest.raises(BundleError, match="decoder computes NaN or Inf in float32 already"):
        scan(graphs, manifest, pixels)


def test_the_limit_and_the_notes() -> None:
    seen = Range("decoder", "v", LIMIT, ("a", "b"), fixed=False)
    above = dataclasses.replace(seen, largest=91_000.4, layers=("b",))
    assert overflowing([seen]) == {}
    assert overflowing([seen, above]) == {"b": 91_000.4}
    assert overflowing([above, seen], limit=100) == {"b": 91_000.4, "a": LIMIT}
    assert range_notes({"b": 91_000.4}) == ("b kept in float32: 91,000 seen",)
