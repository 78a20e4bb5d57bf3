"""preprocessor_config.json as transformers writes it, with other values, and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, read_config
from paligemma_edge.export.checkpoint.preprocessor_config import read_image_config
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.manifest import ImageConfig

SIDE = 56
DEFAULT = ImageConfig(
    size=SIDE, resample="bicubic", rescale_factor=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.fixture(scope="module")
def config(make_checkpoint: Callable[..., Path]) -> PaliGemmaConfig:
    return read_config(make_checkpoint(vision={"image_size": SIDE}))


def write(folder: Path, name: str = "preprocessor_config.json", **values: Any) -> Path:  # noqa: ANN401
    (folder / name).write_text(json.dumps(values))
    return folder


def test_a_file_that_transformers_saved(tmp_path: Path, config: PaliGemmaConfig) -> None:
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=2)
    processor.save_pretrained(tmp_path)
    image = read_image_config(tmp_path, config)
    assert image.resample == "bilinear"
    assert image.rescale_factor == pytest.approx(DEFAULT.rescale_factor)
    assert (image.size, image.mean, image.std) == (DEFAULT.size, DEFAULT.mean, DEFAULT.std)


def test_absent_fields_mean_the_defaults(tmp_path: Path, config: PaliGemmaConfig) -> None:
    assert read_image_config(tmp_path, config) == DEFAULT
    assert read_image_config(write(tmp_path, do_convert_rgb=None, size=None), config) == DEFAULT


def test_processor_config_comes_first(tmp_path: Path, config: PaliGemmaConfig) -> None:
    write(tmp_path, size={"height": 1, "width": 1})
    inner = {"size": {"height": SIDE, "width": SIDE}, "resample": 0, "image_std": 0.25}
    write(tmp_path, "processor_config.json", image_processor=inner)
    image = read_image_config(tmp_path, config)
    assert (image.resample, image.std) == ("nearest", (0.25,) * 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"height": 224, "width": 224}}, "56 x 56"),
        ({"size": {"height": SIDE, "width": 1}}, "56 x 56"),
        ({"size": {"shortest_edge": SIDE}}, "56 x 56"),
        ({"do_resize": False}, "do_resize False, wanted true"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_center_crop": True}, "do_center_crop True, wanted false"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": 9}, "resample 9"),
        ({"resample": [3]}, "resample [3]"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor '1/255'"),
    ],
)
def test_unsupported_steps(
    tmp_path: Path, config: PaliGemmaConfig, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_image_config(write(tmp_path, **values), config)
    assert message in str(caught.value)
