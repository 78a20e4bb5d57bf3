import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.draw import PALETTE, colour_of, contrast, draw, text_colour
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject

GREY = (128, 128, 128)
MIDDLE = Box(0.25, 0.25, 0.75, 0.75)


def detection(label: str = "cat", box: Box = MIDDLE) -> ParsedObject:
    return ParsedObject(label, box, None)


def canvas(width: int = 200, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (np.asarray(before) != np.asarray(after)).any(-1)
    return result


def is_colour(image: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (np.asarray(image) == colour).all(-1)
    return result


def test_the_lines_of_a_box_run_along_its_inside() -> None:
    drawn = is_colour(draw(canvas(), [detection("")]), colour_of(""))
    wanted = np.zeros((160, 200), bool)
    wanted[40:120, 50:150] = True
    wanted[41:119, 51:149] = False
    assert np.array_equal(drawn, wanted)


def test_a_line_stands_out_from_its_own_colour() -> None:
    for label in ("cat", "dog", "bird", "tree", "car"):
        same = Image.new("RGB", (200, 160), colour_of(label))
        assert changed(same, draw(same, [detection(label)])).any()


def test_the_given_image_is_not_changed() -> None:
    image = canvas()
    drawn = draw(image, [detection()])
    assert not changed(canvas(), image).any()
    assert (drawn.mode, drawn.size) == ("RGB", image.size)


def test_nothing_found_changes_nothing() -> None:
    assert not changed(canvas(), draw(canvas(), [])).any()


@pytest.mark.parametrize("box", [Box(0.5, 0.2, 0.5, 0.8), Box(0.7, 0.7, 0.2, 0.2)])
def test_a_box_without_pixels_is_left_out(box: Box) -> None:
    assert not changed(canvas(), draw(canvas(), [detection(box=box)])).any()


def test_a_mask_veils_what_it_covers_and_no_more() -> None:
    mask = np.zeros((160, 200), np.float32)
    mask[60:100, 80:120] = 1
    empty = detection("cat", Box(0, 0, 0, 0))
    drawn = draw(canvas(), [empty], [mask])
    assert np.array_equal(changed(canvas(), drawn), mask > 0)
    half = (np.array(GREY) + colour_of("cat")) / 2
    assert np.abs(np.asarray(drawn)[80, 100] - half).max() <= 2
    outline = is_colour(drawn, colour_of("cat"))
    assert outline[60, 80:120].all()
    assert outline[60:100, 119].all()
    assert not outline[64:96, 84:116].any()


def test_a_soft_mask_is_a_softer_veil() -> None:
    mask = np.full((160, 200), 0.2, np.float32)
    drawn = draw(canvas(), [detection("cat", Box(0, 0, 0, 0))], [mask])
    tenth = np.array(GREY) * 0.9 + np.array(colour_of("cat")) * 0.1
    assert np.abs(np.asarray(drawn)[80, 100] - tenth).max() <= 2


def test_a_mask_that_touches_the_border_has_a_line_there() -> None:
    drawn = draw(canvas(), [detection("", Box(0, 0, 0, 0))], [np.ones((160, 200), np.float32)])
    assert is_colour(drawn, colour_of(""))[0].all()


def test_an_empty_mask_changes_nothing() -> None:
    mask = np.zeros((160, 200), np.float32)
    assert not changed(canvas(), draw(canvas(), [detection(box=Box(0, 0, 0, 0))], [mask])).any()


def above_the_box(label: str) -> NDArray[np.uint8]:
    """What a large image shows above a box: the label alone."""
    image = draw(canvas(800, 640), [detection(label)])
    return np.asarray(image)[:158]


def test_a_label_has_a_plate_of_its_colour_with_text_on_it() -> None:
    pixels = above_the_box("cat")
    plate = (pixels == colour_of("cat")).all(-1)
    letters = (pixels == text_colour(colour_of("cat"))).all(-1)
    assert plate.sum() > 200
    assert letters.sum() > 5
    rows, columns = np.nonzero(plate)
    y, x = np.nonzero(letters)
    assert rows.min() < y.min() <= y.max() < rows.max()
    assert columns.min() < x.min() <= x.max() < columns.max()
    assert (above_the_box("") == GREY).all()


@dataclass(frozen=True)
class Sure:
    """An object with a confidence."""

    label: str
    xyxy_normalized: tuple[float, float, float, float]
    confidence: float


def test_the_confidence_stands_beside_the_label_where_there_is_room() -> None:
    wide, narrow = (0.25, 0.25, 0.75, 0.75), (0.25, 0.25, 0.3, 0.75)
    alone, sure = ([detection("cat")], [Sure("cat", wide, 0.871)])
    plates = [
        is_colour(draw(canvas(), one), colour_of("cat"))[:39].any(0).sum() for one in (alone, sure)
    ]
    assert plates[1] > 1.5 * plates[0]
    name = "a long label for such a box"
    assert draw(canvas(), [Sure(name, narrow, 0.871)]) == draw(
        canvas(), [detection(name, Box.from_xyxy(narrow))]
    )


def test_labels_of_one_box_do_not_hide_each_other() -> None:
    one = draw(canvas(), [detection("cat")])
    both = draw(canvas(), [detection("cat"), detection("dog")])
    assert colour_of("cat") != colour_of("dog")
    plate = is_colour(one, colour_of("cat"))[:38]
    assert plate.sum() > 50
    assert np.array_equal(is_colour(both, colour_of("cat"))[:38], plate)
    assert is_colour(both, colour_of("dog"))[:38].sum() > 50


@settings(max_examples=40)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
    st.text(max_size=30),
)
def test_any_image_any_box_and_any_label_can_be_drawn(
    width: int, height: int, boxes: list[tuple[float, float, float, float]], label: str
) -> None:
    detections = [detection(label, Box(*corners)) for corners in boxes]
    mask = np.ones((height, width), np.float32)
    drawn = draw(canvas(width, height), detections, [mask, *[None] * 3][: len(detections)])
    assert drawn.size == (width, height)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (4000, 3000), (1, 4000), (4000, 1)])
def test_lines_and_letters_grow_with_the_image(width: int, height: int) -> None:
    image = canvas(width, height)
    mask = np.ones((height, width), np.float32)
    share = changed(image, draw(image, [detection("cat")])).mean()
    assert draw(image, [detection("cat")], [mask]).size == (width, height)
    if min(width, height) > 1:
        assert 0.01 < share < 0.35


def test_a_label_wider_than_the_image_is_cut() -> None:
    drawn = draw(canvas(), [detection("a very long label " * 1000)])
    plate = is_colour(drawn, colour_of("a very long label " * 1000))[:38]
    assert plate.any(0).sum() > 150


def test_the_colour_of_a_label_never_changes() -> None:
    assert all(colour_of(name) == colour_of(f" {name.upper()} ") for name in ("cat", "dog", "owl"))
    code = "from paligemma_edge.runtime.results.draw import colour_of; print(colour_of('cat'))"
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert other.strip() == str(colour_of("cat")) == str((245, 130, 48))
    assert len({colour_of(str(number)) for number in range(200)}) == len(PALETTE)


def test_colours_are_well_apart() -> None:
    for one, other in itertools.combinations(PALETTE, 2):
        assert np.linalg.norm(np.subtract(one, other)) > 70


def test_text_can_be_read_on_every_plate() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)
    assert all(contrast(text_colour(plate), plate) >= 4.5 for plate in PALETTE)


def test_accents_that_the_font_lacks_are_dropped() -> None:
    shapes = []
    for label in ("café", "cafe", "cafo"):
        pixels = above_the_box(label)
        shapes.append((pixels == text_colour(colour_of(label))).all(-1))
    assert np.array_equal(shapes[0], shapes[1])
    assert not np.array_equal(shapes[1], shapes[2])


def test_another_font_can_be_named(tmp_path: Path) -> None:
    built_in = ImageFont.load_default(20)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    path = tmp_path / "font.ttf"
    path.write_bytes(built_in.font_bytes)
    assert not changed(
        draw(canvas(), [detection()]), draw(canvas(), [detection()], font=path)
    ).any()


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "font.ttf"
    path.write_text("no font")
    with pytest.raises(OptionError, match=r"font\.ttf: not a font"):
        draw(canvas(), [detection()], font=path)


def test_masks_that_do_not_fit_are_refused() -> None:
    for count in (0, 2):
        with pytest.raises(OptionError, match="not as many as the 1 objects"):
            draw(canvas(), [detection()], [None] * count)
    with pytest.raises(OptionError, match=r"mask is \[64, 64\], wanted the image's \[160, 200\]"):
        draw(canvas(), [detection()], [np.zeros((64, 64), np.float32)])


def test_the_line_around_a_mask_lies_over_the_veil_of_the_next() -> None:
    mask = np.zeros((160, 200), np.float32)
    mask[60:100, 80:120] = 1
    whole = np.ones((160, 200), np.float32)
    nowhere = Box(0, 0, 0, 0)
    both = [detection("cat", nowhere), detection("dog", nowhere)]
    drawn = is_colour(draw(canvas(), both, [mask, whole]), colour_of("cat"))
    assert np.array_equal(drawn, is_colour(draw(canvas(), both[:1], [mask]), colour_of("cat")))


def test_masks_may_be_made_one_by_one() -> None:
    mask = np.ones((160, 200), np.float32)
    boxes = [detection(), detection("dog")]
    at_once = draw(canvas(), boxes, [mask, None])
    assert not changed(at_once, draw(canvas(), boxes, (m for m in (mask, None)))).any()


def test_a_label_that_would_hide_another_is_left_out() -> None:
    small, whole = canvas(24, 12), Box(0, 0, 1, 1)
    nothing, one, both = (
        np.asarray(draw(small, [detection(label, whole) for label in labels]))[1:-1, 1:-1]
        for labels in ([""], ["cat"], ["cat", "dog"])
    )
    assert (one != nothing).any(-1).sum() > 50
    assert np.array_equal(both, one)


def test_labels_of_one_box_find_places_down_its_sides() -> None:
    names = {colour_of(str(number)): str(number) for number in range(200)}
    boxes = [detection(name, Box(0.1, 0.1, 0.9, 0.9)) for name in names.values()]
    drawn = draw(canvas(90, 300), boxes)
    plates = {colour: int(is_colour(drawn, colour).sum()) for colour in PALETTE}
    assert min(plates.values()) > 40, plates
