import io
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from transformers.image_utils import load_image as reference_load
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.formats import FORMATS, WANTED
from paligemma_edge.runtime.images.load import (
    MAX_FILE_BYTES,
    MAX_SIDE,
    ImageInput,
    image_label,
    load_image,
)
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import ImageConfig
from tests.helpers.image_files import encoded, png_header

SIDE = 56
HALF = (0.5, 0.5, 0.5)
CONFIG = ImageConfig(size=SIDE, resample="bicubic", rescale_factor=1 / 255, mean=HALF, std=HALF)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: pixels that differ, and that JPEG does not destroy."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), np.uint8)
    planes = [Image.fromarray(small[..., c]).resize((width, height)) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], -1)


@cache
def processor(config: ImageConfig = CONFIG) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(
        size={"height": config.size, "width": config.size},
        resample=Image.Resampling[config.resample.upper()],
        rescale_factor=config.rescale_factor,
        image_mean=list(config.mean),
        image_std=list(config.std),
    )


def reference(image: Image.Image, config: ImageConfig = CONFIG) -> NDArray[np.float32]:
    (values,) = processor(config)(image, return_tensors="np")["pixel_values"]
    result: NDArray[np.float32] = values
    return result


def ours(source: ImageInput, config: ImageConfig = CONFIG) -> NDArray[np.float32]:
    return pixel_values(load_image(source), config)


def assert_equal(actual: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
    assert actual.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("shape", [(56, 56), (300, 200), (33, 71), (1, 1), (1, 9), (1, 30000)])
def test_pixel_values_are_bit_identical_with_transformers(shape: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*shape))
    values = ours(image)
    assert values.shape == (3, SIDE, SIDE)
    assert_equal(values, reference(image))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_noise_of_any_size_is_bit_identical(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert_equal(ours(pixels), reference(Image.fromarray(pixels)))


def test_every_byte_value_is_bit_identical() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    config = ImageConfig(size=16, resample="nearest", rescale_factor=1 / 255, mean=HALF, std=HALF)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], -1))
    assert_equal(ours(image, config), reference(image, config))


@pytest.mark.parametrize(
    "resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
)
def test_other_facts_are_bit_identical(resample: Any) -> None:  # noqa: ANN401 - a literal
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config = ImageConfig(size=40, resample=resample, rescale_factor=0.00392, mean=mean, std=std)
    image = Image.fromarray(noise(70, 90))
    assert_equal(ours(image, config), reference(image, config))


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_files_bytes_and_paths_are_the_same_image(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(noise(60, 80)), kind)
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(data)
    with open(path, "rb") as file:  # noqa: PTH123 - Pillow leaves some of those that it opens
        wanted = reference(ImageOps.exif_transpose(Image.open(file)))
    for source in (data, path, str(path), Image.open(io.BytesIO(data))):
        assert_equal(ours(source), wanted)


def test_webp_is_read_in_a_fresh_process() -> None:
    data = encoded(Image.fromarray(noise(4, 4)), "WEBP")
    code = (
        "import sys; from paligemma_edge.runtime.images.load import load_image; "
        "assert load_image(sys.stdin.buffer.read()).size == (4, 4)"
    )
    subprocess.run([sys.executable, "-c", code], input=data, check=True)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGBX", "HSV", "LAB"])
def test_modes_without_transparency_are_those_of_transformers(mode: str) -> None:
    pixels = Image.fromarray(noise(40, 30))
    image = Image.frombytes("LAB", (30, 40), pixels.tobytes()) if mode == "LAB" else None
    image = image or pixels.convert(mode)
    assert_equal(ours(image), reference(image))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_modes_are_those_of_transformers(mode: str) -> None:
    data = encoded(Image.fromarray(noise(40, 30)).convert(mode), "JPEG")
    assert_equal(ours(data), reference(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_lies_on_white_as_in_transformers(mode: str) -> None:
    rgba = Image.fromarray(noise(40, 30, channels=4))
    image = {"PA": rgba.convert("LA").convert("PA")}.get(mode) or rgba.convert(mode)
    actual = ours(image)
    shown = image.convert("RGBA") if mode == "RGBa" else image  # it takes RGBa for opaque
    assert_equal(actual, reference(shown))
    assert np.abs(actual - reference(rgba.convert("RGB"))).max() > 0.1


def test_an_image_that_is_wholly_transparent_is_white() -> None:
    assert (np.asarray(load_image(Image.new("RGBA", (3, 3), (0, 0, 0, 0)))) == 255).all()


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (2, 0, 4, 2))
    data = encoded(image, "PNG", transparency=bytes([0, 255]))
    pixels = np.asarray(load_image(data))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == [0, 0, 255]).all()
    assert_equal(ours(data), reference(Image.open(io.BytesIO(data))))


def test_a_transparent_colour_of_rgb_is_white() -> None:
    data = encoded(Image.new("RGB", (2, 2), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert (np.asarray(load_image(data)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_exif_orientation_is_applied_as_in_transformers(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(20, 50))
    path = tmp_path / "turned"
    path.write_bytes(encoded(image, kind, exif=exif))
    loaded = load_image(path)
    assert loaded.size == ((20, 50) if orientation > 4 else (50, 20))
    assert loaded.tobytes() == reference_load(str(path)).tobytes()
    if orientation > 1:
        assert loaded.tobytes() != load_image(encoded(image, kind)).tobytes()


def test_an_image_is_not_turned_twice() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    once = load_image(encoded(Image.fromarray(noise(20, 50)), "PNG", exif=exif))
    again = load_image(once)
    assert again.tobytes() == once.tobytes()
    assert again.size == once.size == (20, 50)
    assert ImageOps.exif_transpose(once).size == once.size


def test_damaged_exif_says_nothing_and_pillow_keeps_its_warnings_to_itself(
    recwarn: pytest.WarningsRecorder,
) -> None:
    image = Image.fromarray(noise(20, 50))
    data = encoded(image, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(data)).getexif()
    before = len(recwarn)
    assert load_image(data).tobytes() == image.tobytes()
    assert len(recwarn) == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_in_memory_is_taken_as_given_as_in_transformers(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(noise(20, 50)), "JPEG", exif=exif)))
    for one in (opened, opened.crop((5, 5, 40, 18)), ImageOps.exif_transpose(opened)):
        loaded = load_image(one)
        assert loaded.size == one.size
        assert_equal(ours(one), reference(one))
        assert loaded.getexif().get(0x0112) is None
    assert opened.getexif()[0x0112] == orientation  # the caller's is as it was


def test_an_image_that_cannot_be_turned_for_want_of_memory_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    exif = Image.Exif()
    exif[0x0112] = 6
    monkeypatch.setattr(Image.Image, "transpose", refuse)
    with pytest.raises(ImageError, match="not enough memory for 50 x 20 pixels"):
        load_image(encoded(Image.fromarray(noise(20, 50)), "PNG", exif=exif))


def test_an_image_is_turned_though_another_exif_field_is_damaged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    raw = bytearray(exif.tobytes())
    raw[raw.index(b"\x01\x1a\0\x05") + 3] = 2  # the resolution: a text, which cannot be written
    image = Image.fromarray(noise(20, 50))
    data = encoded(image, "PNG", exif=bytes(raw))
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert load_image(data).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_two_files_are_decoded_at_once_and_the_warning_filters_stay(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, thread = threading.Barrier(2, timeout=30), threading.local()
    data = encoded(Image.fromarray(noise(20, 50)), kind)
    decoder = type(Image.open(io.BytesIO(data)))
    load = decoder.load

    def meeting(image: ImageFile.ImageFile) -> object:
        if not hasattr(thread, "met"):  # Pillow may call it again
            thread.met = True
            both.wait()  # which neither thread gets past alone
        return load(image)

    monkeypatch.setattr(decoder, "load", meeting)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        assert [one.size for one in pool.map(load_image, [data, data])] == [(50, 20)] * 2
    assert warnings.filters == before


def test_the_given_image_is_not_changed() -> None:
    image = Image.fromarray(noise(8, 8))
    image.info["note"] = "mine"
    before = image.tobytes()
    loaded = load_image(image)
    loaded.paste((0, 0, 0), (0, 0, 8, 8))
    assert image.tobytes() == before
    assert image.info == {"note": "mine"}


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 257, 32768, 65535]], np.uint16)
    for source in (encoded(Image.fromarray(values), "PNG"), Image.fromarray(values)):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_every_8_bit_grey_survives_16_bits() -> None:
    ramp = np.arange(256, dtype=np.uint16)[None] * 257
    data = encoded(Image.fromarray(ramp), "PNG")
    assert np.asarray(load_image(data))[0, :, 1].tolist() == list(range(256))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    red, blue = Image.new("RGB", (6, 6), "red"), Image.new("RGB", (6, 6), "blue")
    data = encoded(red, kind, save_all=True, append_images=[blue], lossless=True)
    assert (np.asarray(load_image(data)) == [255, 0, 0]).all()


def test_a_phones_double_image_is_its_first() -> None:
    red, blue = Image.new("RGB", (16, 16), (254, 0, 0)), Image.new("RGB", (16, 16), "blue")
    data = encoded(red, "MPO", save_all=True, append_images=[blue])
    assert (np.asarray(load_image(data)) == [254, 0, 0]).all()


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_are_images(channels: int | None) -> None:
    pixels = noise(20, 30, channels or 1)
    array = pixels if channels else pixels[..., 0]
    image = Image.fromarray(pixels[..., 0] if channels in (None, 1) else pixels)
    assert_equal(ours(array), reference(image))
    assert_equal(ours(np.asfortranarray(array)), reference(image))


def test_an_array_with_alpha_is_within_one_step_of_transformers() -> None:
    array = noise(20, 30, 4)
    (wanted,) = processor()(array, return_tensors="np")["pixel_values"]
    assert np.abs(ours(array) - wanted).max() < 2.1 / 127.5


BAD_ARRAYS: dict[str, NDArray[Any]] = {
    "float": np.zeros((4, 4, 3), np.float32),
    "uint16": np.zeros((4, 4), np.uint16),
    "bool": np.zeros((4, 4), bool),
    "object": np.array([[None]]),
    "channels first": np.zeros((3, 8, 9), np.uint8),
    "two channels": np.zeros((8, 9, 2), np.uint8),
    "batch": np.zeros((1, 8, 9, 3), np.uint8),
    "row": np.zeros(9, np.uint8),
    "no rows": np.zeros((0, 9, 3), np.uint8),
    "no columns": np.zeros((9, 0), np.uint8),
    "scalar": np.array(3, np.uint8),
}


def refusal(source: ImageInput, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_other_arrays_are_refused(name: str) -> None:
    message = refusal(BAD_ARRAYS[name])
    assert message.startswith("the given array: ")
    assert "wanted uint8 [height, width, 3]" in message


@pytest.mark.parametrize(
    ("width", "height"), [(16_385, 16_384), (60_000, 60_000), (MAX_SIDE + 1, 1)]
)
def test_an_image_that_is_too_large_is_never_decoded(width: int, height: int) -> None:
    message = refusal(png_header(width, height))
    assert f"{width} x {height} pixels, wanted at most 268435456 in all" in message
    assert message.endswith(f"and {MAX_SIDE} a side; make the image smaller")


def test_the_photographs_of_phones_are_within_the_limit() -> None:
    """Samsung's 200 megapixels are 16,320 x 12,240; Pillow's own limit would refuse them."""
    message = refusal(png_header(16_320, 12_240))
    assert message.startswith("the given bytes: damaged or cut short")  # it has no pixels


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_pillows_own_limit_is_left_to_the_program(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past it Pillow warns, and past twice of it refuses: 179 million pixels by default."""
    image = Image.fromarray(noise(40, 60))
    data, clear = encoded(image, kind), encoded(image.convert("LA"), "PNG")
    wanted = load_image(data).tobytes()
    for limit in (1500, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if (kind, limit) == ("WEBP", 100):
            message = refusal(data)
            assert message.startswith("the given bytes: more pixels than the 200 that Pillow reads")
        else:
            assert load_image(data).tobytes() == wanted
        assert load_image(clear).size == (60, 40)
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_beyond_pillows_own_limit_is_read(
    compression: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(40, 60)), "TIFF", compression=compression, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    loaded = load_image(data)
    assert (loaded.size, loaded.tobytes()) == (wanted.size, wanted.tobytes())
    assert "pixels, wanted at most 2000 in all" in refusal(data, max_pixels=2000)


def test_the_limit_of_pixels_can_be_set() -> None:
    assert load_image(np.zeros((10, 10), np.uint8), max_pixels=100).size == (10, 10)
    message = refusal(np.zeros((10, 11), np.uint8), max_pixels=100)
    assert "11 x 10 pixels, wanted at most 100 in all" in message


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_an_image_that_is_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(noise(60, 80)), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    assert "cut.img: damaged or cut short" in refusal(path)
    assert "the given bytes: damaged or cut short" in refusal(data[: len(data) // 2])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([one.name for one in FORMATS]))
    image = bytearray(encoded(Image.fromarray(noise(9, 9, 4)[..., :3]), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert load_image(bytes(image)).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"hello", "not an image that can be read"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a RIFF file that is not WebP"),
        (encoded(Image.new("L", (3, 3)), "PPM"), "not an image that can be read"),
        (b"\xff\xd8\xff\xe0", "damaged or cut short"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<svg></svg>", "a text in XML or HTML"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a pointer of Git LFS; run `git lfs pull` where it was cloned",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF image or a video"),
    ],
)
def test_bytes_that_are_not_an_image_are_described(data: bytes, problem: str) -> None:
    assert refusal(data) == (f"the given bytes: {problem}, {WANTED}")


def test_a_folder_a_missing_file_and_a_pipe_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path}: a folder" in refusal(tmp_path)
    assert refusal(tmp_path / "none.png").startswith(f"{tmp_path}/none.png: no such file")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: a pipe, socket or device, wanted a regular" in refusal(tmp_path / "pipe")
    assert "/dev/zero: a pipe, socket or device" in refusal("/dev/zero")
    assert "addresses are not fetched" in refusal("https://example.org/cat.png")
    assert "no such file" in refusal("nul\0.png")
    assert "cannot be read (File name too long)" in refusal("x" * 5000)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.bmp"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    assert "large.bmp: more than 512 MiB" in refusal(path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.png"
    path.touch()
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert "secret.png: cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_unknown_range_are_refused(mode: str) -> None:
    assert f"the given image: mode {mode}" in refusal(Image.new(mode, (2, 2)))


def test_an_image_whose_file_was_closed_is_refused() -> None:
    with io.BytesIO(encoded(Image.fromarray(noise(20, 20)), "PNG")) as file:
        image = Image.open(file)
    assert refusal(image).startswith("the given image: damaged or cut short")


@pytest.mark.parametrize("source", [None, 3, [1, 2], bytearray(b"x")])
def test_other_kinds_are_refused(source: Any) -> None:  # noqa: ANN401 - on purpose
    assert refusal(source).startswith(f"the given {type(source).__name__}: not an image")


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", exhausted)
    assert "not enough memory for 3 x 2 pixels" in refusal(np.zeros((2, 3), np.uint8))


def test_labels_are_short_and_one_line() -> None:
    assert image_label("a/cat.png") == "a/cat.png"
    assert image_label(Path("a/cat.png")) == "a/cat.png"
    assert image_label(b"123") == "the given bytes"
    assert image_label("two\nlines\x1b[31m") == r"two\nlines\x1b[31m"
    assert image_label("") == "''"
    assert len(image_label("x" * 10**6)) < 101


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    with path.open("rb") as file:
        assert load_image(file).size == (3, 2)
        assert file.read() == b""
    shifted = io.BytesIO(b"head" + path.read_bytes())
    shifted.seek(4)
    assert load_image(shifted).getpixel((0, 0)) == (1, 2, 3)


def test_a_file_that_gives_no_image_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.txt"
    path.write_text("words")
    with path.open() as text, pytest.raises(ImageError, match=r"gave str, wanted bytes.*'rb'"):
        load_image(text)  # type: ignore[arg-type]
    closed = path.open("rb")
    closed.close()
    with pytest.raises(ImageError, match=r"one\.txt: cannot be read \(.*closed.*\)"):
        load_image(closed)
    with pytest.raises(ImageError, match="the given file: empty"):
        load_image(io.BytesIO())
    monkeypatch.setattr("paligemma_edge.runtime.images.load.MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(ImageError, match="the given file: more than 1 MiB"):
        load_image(io.BytesIO(bytes((1 << 20) + 1)))
