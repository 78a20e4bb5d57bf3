"""Sizes of memory and of images, as a shell and a program write them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.validation import (
    check_bytes,
    check_count,
    check_flag,
    check_pixels,
    check_share,
    plain,
)

WRONG = ["6", "GB", "-6GB", "0GB", "0.0001kB", "6 gigabytes", "6GB!", "", "٦GB", 0, 6.5, True, None]


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (6_000_000_000, 6_000_000_000),
        ("6GB", 6_000_000_000),
        (" 6 gb ", 6_000_000_000),
        ("512MB", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("4GiB", 4 << 30),
        ("64kB", 64_000),
        ("2TiB", 2 << 40),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(value: int | str, size: int) -> None:
    assert check_bytes("memory_limit", value) == size


@pytest.mark.parametrize("value", WRONG)
def test_anything_else_says_what_is_wanted(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"memory_limit is .*with its unit, such as '6GB'"):
        check_bytes("memory_limit", value)


def test_a_long_text_is_cut() -> None:
    with pytest.raises(OptionError) as caught:
        check_bytes("memory_limit", "x" * 10_000)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("value", "pixels"),
    [
        (1, 1),
        (200_000_000, 200_000_000),
        ("50M", 50_000_000),
        (" 1.5 g ", 1_500_000_000),
        ("9", 9),
        ("1.1M", 1_100_000),
    ],
)
def test_pixels_are_a_number_or_have_a_unit(value: int | str, pixels: int) -> None:
    assert check_pixels("max_pixels", value) == pixels


@pytest.mark.parametrize(
    "value", ["M", "-1M", "0", "5.5", "0.0015K", "50MB", "50 megapixels", "", 0, 6.5, True, None]
)
def test_anything_else_is_no_number_of_pixels(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"max_pixels, in pixels such as '50M', is .*whole"):
        check_pixels("max_pixels", value)


@pytest.mark.parametrize(
    ("value", "own"),
    [
        (np.int64(64), 64),
        (np.uint8(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.float16(2), 2.0),
        (np.bool_(True), True),
        (np.str_("asked"), "asked"),
        (Fraction(1, 4), 0.25),
        (Fraction(10**400), math.inf),
        (True, True),
        (None, None),
    ],
)
def test_a_scalar_of_numpy_is_python_s_own(value: object, own: object) -> None:
    assert plain(value) == own
    assert type(plain(value)) is type(own)
    array = np.array([1])
    assert plain(array) is array


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_a_flag_is_true_or_false(value: Any) -> None:  # noqa: ANN401
    assert check_flag("json", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, "no", None, np.int64(1), np.array([True])])
def test_nothing_else_is_a_flag(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"json is .*, wanted True or False"):
        check_flag("json", value)


def test_numbers_of_numpy_count_and_truth_does_not() -> None:
    assert check_count("steps", np.int64(3)) == 3
    assert type(check_count("steps", np.int64(3))) is int
    assert check_share("min_confidence", np.float32(0.5)) == 0.5
    assert check_bytes("memory_limit", np.int64(9)) == 9
    for wrong in (True, np.True_, np.float32(3), "3", np.array(3)):
        with pytest.raises(OptionError, match="steps is"):
            check_count("steps", wrong)
    for wrong in (True, np.True_, np.float32("nan"), np.float32(2), "1"):
        with pytest.raises(OptionError, match="min_confidence is"):
            check_share("min_confidence", wrong)
