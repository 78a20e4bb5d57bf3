import base64
import dataclasses
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.results.draw import colour_of, draw
from paligemma_edge.runtime.results.notebook import html
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.parse_answer import Box
from tests.helpers.detections import HEIGHT, WIDTH, detection, disc, result

GREY = (128, 128, 128)


class Shown(HTMLParser):
    """What a browser makes of it: elements, the image's attributes, and the text."""

    def __init__(self, text: str | None) -> None:
        super().__init__()
        assert text is not None
        self.elements: list[str] = []
        self.image: dict[str, str | None] = {}
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "img":
            self.image = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def kind_and_image(self) -> tuple[str, Image.Image]:
        match = re.fullmatch("data:image/([a-z]+);base64,(.*)", self.image["src"] or "")
        assert match
        return match[1], Image.open(BytesIO(base64.b64decode(match[2])))


def canvas(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def large(width: int, height: int) -> ObjectResult:
    """A disc in the left half of an image of any size."""
    one = dataclasses.replace(
        detection("cat", Box(0, 0, 1, 0.5), disc()), width=width, height=height
    )
    return result([one], width=width, height=height, image=canvas(width, height))


def test_the_overlay_has_every_box_and_mask() -> None:
    answer = result([detection(decoded=disc()), detection("dog", Box(0, 0.5, 1, 1))])
    image = canvas()
    wanted = draw(image, answer.objects, [answer[0].soft_mask, None])
    drawn = answer.draw(image)
    assert np.array_equal(np.asarray(drawn), np.asarray(wanted))
    assert np.array_equal(np.asarray(image), np.asarray(canvas()))


def test_the_overlay_lies_on_the_image_that_was_kept_or_is_given(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    canvas().save(path)
    kept, without = result([detection()], image=canvas()), result([detection()])
    for drawn in (without.draw(canvas()), without.draw(path), kept.draw(np.asarray(canvas()))):
        assert drawn.tobytes() == kept.draw().tobytes()


def test_an_overlay_needs_the_image_of_the_answer() -> None:
    with pytest.raises(OptionError, match="kept no image"):
        result([detection()]).draw()
    with pytest.raises(OptionError, match=r"has 40 x 60 pixels, the answer is about .* 60 x 40"):
        result([detection()]).draw(canvas(HEIGHT, WIDTH))
    with pytest.raises(ImageError, match="no such file"):
        result([detection()]).draw("none.png")


def test_without_an_image_a_notebook_prints() -> None:
    assert html(None, "text") is None
    assert result([detection()])._repr_html_() is None


@settings(max_examples=40)
@given(st.text())
def test_no_text_is_markup(text: str) -> None:
    shown = Shown(html(canvas(2, 2), text))
    assert shown.elements == ["figure", "img", "figcaption"]
    assert shown.text == text


def test_text_that_looks_like_markup_is_shown() -> None:
    hostile = """</figcaption><script>alert('1')</script><img src="x" onerror='y'> &amp; <b>"""
    for page in (
        html(canvas(), hostile),
        result([detection(hostile)], image=canvas())._repr_html_(),
        result([], text=hostile, image=canvas())._repr_html_(),
        result([detection()], notes=(hostile,), image=canvas())._repr_html_(),
    ):
        shown = Shown(page)
        assert shown.elements == ["figure", "img", "figcaption"]
        assert hostile in shown.text


@pytest.mark.parametrize(
    ("size", "kind", "sent"),
    [
        ((6000, 4000), "jpeg", (1200, 800)),
        ((1201, 3), "png", (1200, 3)),
        ((1, 9000), "png", (1, 1200)),
        ((1200, 900), "jpeg", (1200, 900)),
        ((200, 150), "png", (200, 150)),
        ((1, 1), "png", (1, 1)),
    ],
)
def test_an_image_is_sent_no_larger_than_a_notebook_needs(
    size: tuple[int, int], kind: str, sent: tuple[int, int]
) -> None:
    answer = large(*size)
    for page in (html(answer.image, ""), answer._repr_html_()):
        found_kind, image = Shown(page).kind_and_image
        assert (found_kind, image.size, image.mode) == (kind, sent, "RGB")
        assert page is not None and len(page) < 500_000


@pytest.mark.parametrize(
    ("width", "shown", "pixelated"),
    [(1, 480, True), (112, 448, True), (200, 400, True), (300, 300, False), (2400, 1200, False)],
)
def test_a_small_image_is_shown_larger(width: int, shown: int, pixelated: bool) -> None:
    image = Shown(html(canvas(width, width), "")).image
    assert image["width"] == str(shown)
    assert ("image-rendering:pixelated" in (image["style"] or "")) == pixelated


def test_a_notebook_gets_the_overlay_drawn_at_its_own_size() -> None:
    _, image = Shown(large(3000, 2000)._repr_html_()).kind_and_image
    pixels = np.asarray(image).astype(int)
    half = (np.array(GREY) + colour_of("cat")) / 2
    assert np.abs(pixels[400, 300] - half).max() < 8  # under the veil
    assert np.abs(pixels[400, 900] - GREY).max() < 8
    line = np.abs(pixels[400, :8] - colour_of("cat")).max(-1) < 40
    assert 3 <= line.sum() <= 5  # as on an image of 1200 x 800, not a third of one of 3000 x 2000


def test_any_kind_of_image_is_shown() -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert Shown(html(canvas().convert(mode), "")).kind_and_image[1].size == (WIDTH, HEIGHT)


def test_the_caption_tells_what_was_found() -> None:
    objects = [detection(log_prob=-0.105), detection("", log_prob=-2.303)]
    answer = result(objects, image=canvas(), finish_reason="length", notes=("a note",))
    assert Shown(answer._repr_html_()).text == (
        "cat 90%, 10%\nthe answer was cut by the token limit\na note"
    )
    assert Shown(result(text="no cat", image=canvas())._repr_html_()).text == "no cat"
    assert Shown(result(text=" ", image=canvas())._repr_html_()).text == "nothing found"


def test_words_and_choices_are_shown_with_their_image() -> None:
    words = TextResult(
        prompt="caption", text="a cat", log_prob=-1, finish_reason="stop", image=canvas()
    )
    choice = ChoiceResult(
        prompt="cat?", text="yes", log_probs={"yes": -1.0, "no": -1.0}, image=canvas()
    )
    assert Shown(words._repr_html_()).text == "a cat"
    assert Shown(choice._repr_html_()).text == "yes 50.0%, no 50.0%"
    words = TextResult(prompt="caption", text="a cat", log_prob=-1, finish_reason="stop")
    assert words._repr_html_() is None
