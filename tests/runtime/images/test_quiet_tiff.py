"""What is wrong with a TIFF is told in an error, and nowhere else."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys

import pytest
from PIL import Image

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.load import load_image
from tests.helpers.image_files import encoded

ROWS_PER_STRIP, SAMPLES_PER_PIXEL = 278, 277  # tags


def noise(**options: str) -> bytes:
    return encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "TIFF", **options)


def with_tag(data: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """The file with another entry for a tag that it has."""
    (table,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[table : table + 2])
    for start in range(table + 2, table + 2 + 12 * entries, 12):
        if data[start : start + 2] == struct.pack("<H", tag):
            entry = struct.pack("<HHII", tag, kind, count, value)
            return data[:start] + entry + data[start + 12 :]
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "lzma"])
def test_damaged_pixels(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff says of them what is wrong."""
    whole = noise(compression=compression)
    load_image(whole)
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(whole[:300] + bytes(300) + whole[600:])
    assert capfd.readouterr() == ("", "")


def test_what_pillow_logs_of_a_header() -> None:
    """In a process of its own: pytest has set up logging."""
    data = with_tag(noise(), SAMPLES_PER_PIXEL, 4, 1, 2048)
    program = (
        "import sys; from paligemma_edge.runtime.images.load import load_image\n"
        "try: load_image(sys.stdin.buffer.read())\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=True, timeout=300
    )
    assert b"damaged or cut short" in done.stdout
    assert done.stderr == b""


def test_a_program_that_has_set_up_logging_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "PIL"), pytest.raises(ImageError):
        load_image(with_tag(noise(), SAMPLES_PER_PIXEL, 4, 1, 2048))
    assert "More samples per pixel" in caplog.text


@pytest.mark.filterwarnings("error")
def test_what_pillow_warns_of() -> None:
    """The entry says that it has several values, and Pillow takes the first."""
    size = load_image(with_tag(noise(), ROWS_PER_STRIP, 3, 2, 64)).size
    assert size == (64, 64)
