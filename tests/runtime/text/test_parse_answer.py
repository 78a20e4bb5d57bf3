import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.errors import DeviceError, OptionError
from paligemma_edge.runtime.results.mask import evaluation_mask, inside, paste_mask
from paligemma_edge.runtime.text.parse_answer import Box, ParsedAnswer, ParsedObject, parse_answer


class Parsed(NamedTuple):
    locations: tuple[int, ...]
    codes: tuple[int, ...] | None
    label: str


def take(text: str, kind: str, digits: int, limit: int) -> tuple[int, str] | None:
    """One token `<kindNNN>` at the start of the text, and the rest."""
    end = len(kind) + digits + 2
    number = text[len(kind) + 1 : end - 1]
    if text[:end] != f"<{kind}{number}>" or len(number) != digits:
        return None
    if not set(number) <= set("0123456789") or int(number) >= limit:
        return None
    return int(number), text[end:]


def take_many(text: str, kind: str, digits: int, limit: int, count: int) -> tuple[list[int], str]:
    numbers: list[int] = []
    rest = text
    while len(numbers) < count and (taken := take(rest, kind, digits, limit)):
        numbers.append(taken[0])
        rest = taken[1]
    return (numbers, rest) if len(numbers) == count else ([], text)


def reference_parse(text: str) -> tuple[list[Parsed], str]:
    """The rules of the demo, read character by character."""
    objects, plain = [], ""
    while text:
        locations, rest = take_many(text, "loc", 4, 1024, 4)
        if not locations:
            plain, text = plain + text[0], text[1:]
            continue
        codes, rest = take_many(rest.lstrip(), "seg", 3, 128, 16)
        rest = rest.lstrip()
        label = rest[: next((i for i, c in enumerate(rest) if c in ";<>"), len(rest))]
        rest = rest[len(label) :]
        text = rest.removeprefix("; ") if rest.startswith("; ") else rest
        objects.append(Parsed(tuple(locations), tuple(codes) or None, label.strip()))
    return objects, plain


def flat(answer: ParsedAnswer) -> list[Parsed]:
    return [Parsed(d.box.locations, d.codes, d.label) for d in answer.objects]


pieces = st.sampled_from(
    [
        "<loc0000>", "<loc0511>", "<loc1023>", "<loc1024>", "<loc01>", "<loc0001><loc0002>",
        "<loc0100><loc0200><loc0300><loc0400>", "<loc0900><loc0900><loc0100><loc0100>",
        "<seg000>", "<seg127>", "<seg128>", "<seg005>" * 15, "<seg007>" * 16, "<seg", "<", ">",
        " ; ", "; ", ";", " ", "  ", "\n", "cat", " a red cat ", "naïve 日本 😀", "'", "12",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=14).map("".join))
def test_any_text_is_parsed_by_the_rules_of_the_demo(text: str) -> None:
    objects, plain = reference_parse(text)
    answer = parse_answer(text)
    assert flat(answer) == objects
    assert answer.text == text
    without_tokens = re.sub("<(loc0[0-9]{3}|loc10[01].|loc102[0-3]|seg0..|seg127)>", "", plain)
    assert answer.plain == without_tokens.strip()


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_at_all_never_raises(text: str) -> None:
    assert parse_answer(text).text == text


BOX = "<loc0100><loc0200><loc0300><loc0400>"
CODES = "".join(f"<seg{i:03}>" for i in range(16))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a black cat", []),
        (f"{BOX} cat", [Parsed((100, 200, 300, 400), None, "cat")]),
        (f"{BOX}{CODES} cat", [Parsed((100, 200, 300, 400), tuple(range(16)), "cat")]),
        (f"{BOX}{CODES}", [Parsed((100, 200, 300, 400), tuple(range(16)), "")]),
        (f"{BOX} cat ; {BOX} dog", [Parsed((100, 200, 300, 400), None, n) for n in ("cat", "dog")]),
        (f"{BOX} it's 50% (wet), ok?", [Parsed((100, 200, 300, 400), None, "it's 50% (wet), ok?")]),
        (f"{BOX} cat ; {BOX[:27]}", [Parsed((100, 200, 300, 400), None, "cat")]),
        (f"{BOX}{CODES[:40]}", [Parsed((100, 200, 300, 400), None, "")]),
    ],
)
def test_answers_that_models_give(text: str, expected: list[Parsed]) -> None:
    assert flat(parse_answer(text)) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"so: {BOX} cat ; {BOX}{CODES} dog\n", [f"{BOX} cat", f"{BOX}{CODES} dog"]),
        (f"{BOX}; {BOX}{CODES} ; {BOX}", [BOX, f"{BOX}{CODES}", BOX]),
    ],
)
def test_the_spans_say_where_the_objects_stand(text: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in parse_answer(text).spans] == parts


def test_plain_text_is_what_stands_around_the_objects() -> None:
    assert parse_answer("no cats here").plain == "no cats here"
    assert parse_answer(f"look:\n{BOX} cat ; and more").plain == "look:\nand more"
    assert parse_answer(f"{BOX} cat ; <loc0001><loc0002>").plain == ""


def test_a_detection_holds_shares_of_1024() -> None:
    (detection,) = parse_answer(f"{BOX} cat").objects
    assert detection == ParsedObject(
        "cat", Box(100 / 1024, 200 / 1024, 300 / 1024, 400 / 1024), None
    )


def test_a_long_answer_takes_little_time() -> None:
    text = f"{BOX} cat ; " * 20_000 + "<loc0001>" * 20_000
    assert len(parse_answer(text).objects) == 25_000


locations = st.tuples(*[st.integers(0, 1023)] * 4)
sides = st.integers(1, 5000)


@given(locations, sides, sides)
def test_pixels_are_rounded_shares_of_1024(
    numbers: tuple[int, int, int, int], width: int, height: int
) -> None:
    box = Box.from_locations(*numbers)
    assert box.locations == numbers
    sizes = (height, width, height, width)
    shown = [round(n / 1024 * size) for n, size in zip(numbers, sizes, strict=True)]
    assert list(box.pixels(width, height)) == shown
    counted = [int(n / 1023 * size) for n, size in zip(numbers, sizes, strict=True)]
    assert list(box.evaluation_pixels(width, height)) == counted


def test_the_locations_of_another_box_are_the_nearest() -> None:
    assert Box(0.1, 0.2, 0.9999, 1).locations == (102, 205, 1023, 1023)


def test_the_two_rules_of_pixels_differ() -> None:
    box = Box.from_locations(0, 0, 1023, 1023)
    assert box.pixels(2000, 1000) == (0, 0, 999, 1998)
    assert box.evaluation_pixels(2000, 1000) == (0, 0, 1000, 2000)


@pytest.mark.parametrize("corner", [-0.1, 1.1, float("nan")])
def test_a_corner_outside_the_image_is_refused(corner: float) -> None:
    with pytest.raises(OptionError, match="wanted shares from 0 to 1"):
        Box(0.1, 0.1, corner, 0.5)


def random_mask(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (64, 64)).astype(np.float32)


def pasted(
    values: NDArray[np.generic], box: tuple[int, ...], width: int, height: int
) -> NDArray[np.float64]:
    """Put values where they belong, pixel by pixel."""
    y0, x0, _, _ = box
    full = np.zeros((height, width))
    for (y, x), value in np.ndenumerate(values):
        full[y0 + y, x0 + x] = value
    return full


def reference_soft(
    mask: NDArray[np.float32], numbers: tuple[int, ...], width: int, height: int
) -> NDArray[np.float64]:
    sizes = (height, width, height, width)
    box = tuple(round(n / 1024 * s) for n, s in zip(numbers, sizes, strict=True))
    if box[2] <= box[0] or box[3] <= box[1]:
        return np.zeros((height, width))
    bright = np.minimum(np.maximum(mask / 2 + 0.5, 0), 1)
    grey = Image.fromarray(np.floor(bright * 255).astype("uint8"), "L")
    small = np.array(grey.resize((box[3] - box[1], box[2] - box[0]))) / 255.0
    return pasted(small, box, width, height)


def reference_counted(
    mask: NDArray[np.float32], numbers: tuple[int, ...], width: int, height: int
) -> NDArray[np.float64]:
    sizes = (height, width, height, width)
    box = tuple(int(n / 1023 * s) for n, s in zip(numbers, sizes, strict=True))
    if box[2] <= box[0] or box[3] <= box[1]:
        return np.zeros((height, width))
    grey = Image.fromarray(mask, "F").resize((box[3] - box[1], box[2] - box[0]), resample=2)
    return pasted(np.array(grey) > 0, box, width, height)


small_sides = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), locations, small_sides, small_sides)
def test_a_soft_mask_is_that_of_the_demo_pixel_by_pixel(
    seed: int, numbers: tuple[int, int, int, int], width: int, height: int
) -> None:
    soft = paste_mask(random_mask(seed), Box.from_locations(*numbers), width, height)
    wanted = reference_soft(random_mask(seed), numbers, width, height)
    assert (soft.dtype, soft.shape) == (np.dtype(np.float32), (height, width))
    assert np.array_equal(soft, wanted.astype(np.float32))
    assert np.array_equal(inside(soft), wanted > 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), locations, small_sides, small_sides)
def test_an_evaluated_mask_is_that_of_the_evaluator_pixel_by_pixel(
    seed: int, numbers: tuple[int, int, int, int], width: int, height: int
) -> None:
    counted = evaluation_mask(random_mask(seed), Box.from_locations(*numbers), width, height)
    wanted = reference_counted(random_mask(seed), numbers, width, height)
    assert (counted.dtype, counted.shape) == (np.dtype(np.bool_), (height, width))
    assert np.array_equal(counted, wanted == 1)


def test_the_two_rules_of_masks_agree_but_for_the_edge() -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    disc = (1 - 1.5 * np.hypot(x, y)).astype(np.float32)
    box = Box.from_locations(100, 100, 900, 1023)
    shown = inside(paste_mask(disc, box, 300, 200))
    counted = evaluation_mask(disc, box, 300, 200)
    assert shown.sum() > 10_000
    assert 0.98 < (shown == counted).mean() < 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masks_with_nan_or_inf_are_an_error(value: float) -> None:
    mask = random_mask(0)
    mask[3, 4] = value
    for rule in (paste_mask, evaluation_mask):
        with pytest.raises(DeviceError, match="mask decoder produced"):
            rule(mask, Box(0, 0, 1, 1), 9, 9)
