"""A manifest that was changed after the export reads the golden question otherwise, at any size."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma_edge.export.golden_question import golden_question
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import pixel_grid, same_pixels
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import ImageConfig
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.journey import call

CONFIG = ImageConfig(
    size=224, resample="bicubic", rescale_factor=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
)
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"resample": name} for name in ("nearest", "lanczos", "bilinear", "box", "hamming")},
    "scale": {"rescale_factor": 0.00393},
    "mean": {"mean": (0.5, 0.495, 0.5)},
    "deviation": {"std": (0.5, 0.5, 0.505)},
}


@pytest.fixture(scope="module")
def image(shapes_bundle: Path) -> Image.Image:
    manifest = Bundle.open(shapes_bundle).manifest
    encoder = PromptEncoder(shapes_bundle / manifest.tokenizer.file, manifest.tokenizer)
    return Image.open(io.BytesIO(golden_question(CONFIG, encoder)["golden.png"]))


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("change", CHANGES)
def test_other_preprocessing_shows_in_its_pixels(
    change: str, size: int, image: Image.Image
) -> None:
    config = dataclasses.replace(CONFIG, size=size)
    other = dataclasses.replace(config, **CHANGES[change])
    grids = [pixel_grid(pixel_values(image, one)) for one in (config, other)]
    assert same_pixels(grids[0], grids[0])
    assert not same_pixels(*grids)
    assert not same_pixels(*reversed(grids))


def test_check_tells_a_mean_that_was_changed_after_the_export(shapes_copy: Path) -> None:
    assert call("check", shapes_copy).returncode == 0
    path = shapes_copy / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"mean": [\n      0.5,', '"mean": [\n      0.49,'))
    assert path.read_text() != text
    checked = call("check", shapes_copy)
    assert checked.returncode == 1
    assert "FAILED: " in checked.stdout
    assert "see `image` in the manifest" in checked.stdout
