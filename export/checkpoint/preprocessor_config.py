"""How a checkpoint's images are prepared, from the preprocessor_config.json saved with it.

Fills SiglipImageProcessor's defaults. A step that the runtime does not do is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NoReturn

from PIL import Image

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, read_json
from paligemma_edge.export.checkpoint.config_fields import Json
from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.manifest import ImageConfig

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # of transformers 5, where it holds all processors
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

# transformers' SiglipImageProcessor; the size is the model's.
_DEFAULTS: Json = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_center_crop": False,
    "do_pad": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_FIXED = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_center_crop", "do_pad")
_RESAMPLE: dict[int, Resample] = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.LANCZOS: "lanczos",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.BOX: "box",
    Image.Resampling.HAMMING: "hamming",
}


def read_image_config(directory: Path | None, config: PaliGemmaConfig) -> ImageConfig:
    """Read a checkpoint's preprocessing; without a file or a directory, as in the released models.

    Raises CheckpointError for a step that the runtime does not do, and for a size that is not
    the model's.
    """
    side = config.vision.image_size
    stored = {name: value for name, value in _stored(directory).items() if value is not None}
    values = {**_DEFAULTS, "size": side, **stored}
    for name in _FIXED:
        if bool(values[name]) != _DEFAULTS[name]:
            _reject(name, values[name], repr(_DEFAULTS[name]).lower())
    if _side(values["size"]) != side:
        _reject("size", values["size"], f"{side} x {side}, as vision_config.image_size")
    if values["resample"] not in list(_RESAMPLE):
        _reject("resample", values["resample"], "one of Pillow's filters, 0 to 5")
    return ImageConfig(
        size=side,
        resample=_RESAMPLE[values["resample"]],
        rescale_factor=_number("rescale_factor", values["rescale_factor"]),
        mean=_triple("image_mean", values["image_mean"]),
        std=_triple("image_std", values["image_std"], above=0.0),
    )


def _stored(directory: Path | None) -> Json:
    if directory is None:
        return {}
    if has_file(directory / PROCESSOR_FILE):
        inner = read_json(directory / PROCESSOR_FILE).get("image_processor")
        if isinstance(inner, dict):
            return inner
    if has_file(directory / PREPROCESSOR_FILE):
        return read_json(directory / PREPROCESSOR_FILE)
    return {}


def _side(size: object) -> object:
    """Return the side of a square, None for any other size."""
    if isinstance(size, dict):
        height, width = size.get("height"), size.get("width")
        return height if height == width else None
    return size


def _triple(name: str, value: Any, above: float = -1e6) -> tuple[float, float, float]:  # noqa: ANN401
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        _reject(name, value, "three numbers, for red, green and blue")
    red, green, blue = (_number(name, item, above) for item in values)
    return red, green, blue


def _number(name: str, value: Any, above: float = 0.0) -> float:  # noqa: ANN401
    if type(value) not in (int, float) or not above < value < 1e6:
        _reject(name, value, f"a number above {above:g}")
    return float(value)


def _reject(name: str, value: object, wanted: str) -> NoReturn:
    raise CheckpointError(
        f"{PREPROCESSOR_FILE} has {name} {value!r}, wanted {wanted}; "
        "the runtime prepares images in no other way"
    )
