"""What libtiff finds wrong with a file is told in an error, and nowhere else."""

from __future__ import annotations

import pytest
from PIL import Image

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.load import load_image
from tests.helpers.image_files import encoded


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "lzma"])
def test_a_damaged_tiff_writes_nothing_to_the_terminal(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    whole = encoded(noise, "TIFF", compression=compression)
    load_image(whole)
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(whole[:300] + bytes(300) + whole[600:])
    assert capfd.readouterr() == ("", "")
