"""The typed calls over many images: in order, lazily, as single calls answer."""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge import ImageError, ImageInput, OptionError, PaliGemma, PromptError
from paligemma_edge.runtime.batch_calls import BatchCalls
from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.generation import batch as generation_batch
from paligemma_edge.runtime.typed_calls import TypedCalls

CALLS = ("caption", "ask", "ocr", "detect", "segment", "classify", "run")
FEW = 6  # tokens

Ask = Callable[[Any], Any]
ASKS: dict[str, Ask] = {
    "caption": lambda calls: calls.caption(max_new_tokens=FEW),
    "ask": lambda calls: calls.ask("how many shapes are there?", max_new_tokens=FEW),
    "ocr": lambda calls: calls.ocr(max_new_tokens=FEW),
    "detect": lambda calls: calls.detect(["star", "circle"]),
    "segment": lambda calls: calls.segment("star", labels="asked"),
    "classify": lambda calls: calls.classify("answer en is there a star?", ["yes", "no"]),
    "run": lambda calls: calls.run("detect star", classes=["circle", "star"]),
}


@pytest.fixture(scope="module")
def images(shapes_images: Path) -> list[Path]:
    return sorted(p for p in shapes_images.glob("*.png") if "masks" not in p.name)[:5]


@pytest.mark.parametrize("name", CALLS)
def test_each_answer_is_that_of_a_single_call_in_order(
    shapes_model: PaliGemma, images: list[Path], name: str
) -> None:
    answers = list(ASKS[name](shapes_model.batch(images, max_batch_size=3)))
    alone = [ASKS[name](shapes_model.encode(image)) for image in images]
    assert [one.to_dict() for one in answers] == [one.to_dict() for one in alone]


@pytest.mark.parametrize("name", [*CALLS, "generate", "stream"])
def test_all_offer_the_same_calls_with_the_same_options(name: str) -> None:
    def options(kind: type) -> dict[str, tuple[object, object]]:
        signature = inspect.signature(getattr(kind, name))
        return {n: (p.default, p.annotation) for n, p in signature.parameters.items()}

    model, encoded = options(PaliGemma), options(EncodedImage)
    assert list(model)[:2] == ["self", "image"]
    del model["image"]
    assert model.pop("adapter") == (None, "str | None")
    assert model == encoded
    if name in CALLS:
        assert options(BatchCalls) == encoded == options(TypedCalls)


def test_a_million_images_are_read_as_results_are(shapes_model: PaliGemma) -> None:
    alive: set[int] = set()
    most = taken = 0
    home = threading.current_thread()

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal most, taken
        for number in range(1_000_000):
            assert threading.current_thread() is home
            frame = np.full((8, 8, 3), number % 251, np.uint8)
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            taken, most = taken + 1, max(most, len(alive))
            yield frame

    results = shapes_model.batch(frames(), max_batch_size=2).caption(max_new_tokens=2)
    assert taken == 0
    assert len(list(itertools.islice(results, 9))) == 9
    results.close()
    gc.collect()
    assert most <= 2 + 2 + 2
    assert 9 <= taken <= 9 + 2 * 2 + 2


def test_closing_gives_the_slots_back(shapes_bundle: Path, images: list[Path]) -> None:
    model = PaliGemma(shapes_bundle, "cpu", max_batch_size=2, max_length=110)
    results = model.batch(images).caption()
    next(results)
    results.close()
    assert model.caption(images[0]).text
    assert not [t.name for t in threading.enumerate() if t.name.startswith("read-ahead")]


def mixed(images: list[Path]) -> list[ImageInput]:
    return [images[0], b"no image", images[1], "absent.png", images[2]]


def test_an_error_stands_in_its_place_or_is_raised_there(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    sources = mixed(images)
    kept = list(shapes_model.batch(sources, on_error="return").caption(max_new_tokens=FEW))
    assert [isinstance(one, ImageError) for one in kept] == [False, True, False, True, False]
    assert "images[1]: the given bytes" in str(kept[1])
    assert "images[3]: absent.png" in str(kept[3])
    assert kept[4] == shapes_model.caption(images[2], max_new_tokens=FEW)
    given: list[object] = []
    with pytest.raises(ImageError, match=r"images\[1\]"):
        given.extend(shapes_model.batch(sources).caption(max_new_tokens=FEW))
    results = shapes_model.batch(sources).caption(max_new_tokens=FEW)
    assert next(results) == kept[0]


def test_an_error_of_the_callers_iterator_comes_after_the_results_before_it(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    def broken() -> Iterator[Path]:
        yield from images[:3]
        raise KeyError("the database is gone")

    given = []
    with pytest.raises(KeyError, match="the database is gone"):
        for one in shapes_model.batch(broken(), on_error="return").caption(max_new_tokens=FEW):
            given.append(one)
    assert len(given) == 3


def test_results_that_wait_for_one_before_them_are_limited(
    shapes_model: PaliGemma, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken images fill what is held at once; then the rest is answered in further rounds."""
    monkeypatch.setattr(generation_batch, "_MOST_HELD", 2)
    sources: list[ImageInput] = [images[0], *[b"x"] * 9, images[1], b"y", images[2]]
    kept = list(
        shapes_model.batch(sources, on_error="return", max_batch_size=2).caption(max_new_tokens=FEW)
    )
    places = [n for n, one in enumerate(kept) if not isinstance(one, ImageError)]
    assert places == [0, 10, 12]
    assert len(kept) == 13


def test_an_iterator_serves_one_call_and_a_list_any_number(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    many = shapes_model.batch(images[:2])
    assert len(list(many.ocr(max_new_tokens=2))) == len(list(many.ocr(max_new_tokens=2))) == 2
    once = shapes_model.batch(iter(images[:2]))
    assert len(list(once.ocr(max_new_tokens=2))) == 2
    with pytest.raises(OptionError, match="used up"):
        once.ocr()


def test_nothing_is_asked_about_no_images(shapes_model: PaliGemma) -> None:
    assert list(shapes_model.batch([]).caption()) == []
    assert list(shapes_model.batch(iter(())).classify("x", ["a", "b"])) == []


def test_results_do_not_keep_their_images(shapes_model: PaliGemma, images: list[Path]) -> None:
    (found,) = shapes_model.batch(images[:1]).detect("star")
    assert found.image is None
    assert found.draw(images[0]).size == (found.width, found.height)


def test_an_array_of_frames_is_a_batch(shapes_model: PaliGemma, images: list[Path]) -> None:
    frame = np.asarray(Image.open(images[0]).convert("RGB"))
    both = list(shapes_model.batch(np.stack([frame, frame])).caption(max_new_tokens=FEW))
    assert both == [shapes_model.caption(images[0], max_new_tokens=FEW)] * 2


def test_a_frame_is_as_it_was_when_it_was_given(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    """Cameras fill one array again and again, and a generator closes the file that it gave."""
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    wanted = [shapes_model.caption(frame).text for frame in frames]
    assert len(set(wanted)) > 1

    def camera() -> Iterator[ImageInput]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    def files() -> Iterator[ImageInput]:
        for path in images:
            with path.open("rb") as file:
                yield file

    def opened() -> Iterator[ImageInput]:
        for path in images:
            with Image.open(path) as image:
                yield image

    for given in (camera, files, opened):
        assert [result.text for result in shapes_model.batch(given()).caption()] == wanted


def test_what_cannot_be_asked_is_said_by_the_call(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    batch = shapes_model.batch(images)
    with pytest.raises(PromptError, match="asks for nothing"):
        batch.detect("")
    with pytest.raises(OptionError, match="max_new_tokens is 0"):
        batch.caption(max_new_tokens=0)
    with pytest.raises(OptionError, match="labels is 'asked' and constrained is False"):
        batch.segment("star", labels="asked", constrained=False)
    with pytest.raises(OptionError, match="classes is 'star', wanted a list"):
        batch.detect("star", classes="star")
    with pytest.raises(OptionError, match="each name once"):
        batch.detect("star", classes=["star", "star"])


@pytest.mark.parametrize("one", ["a.png", b"x", Path("a.png"), Image.new("RGB", (2, 2)), 3])
def test_one_image_is_no_batch(shapes_model: PaliGemma, one: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"images is one .*, wanted a list"):
        shapes_model.batch(one)


def test_options_of_a_batch_are_checked(shapes_model: PaliGemma) -> None:
    wrong: Any = "skip"
    with pytest.raises(OptionError, match="on_error is 'skip'"):
        shapes_model.batch([], on_error=wrong)
    with pytest.raises(OptionError, match="max_batch_size is 0"):
        shapes_model.batch([], max_batch_size=0)
    with pytest.raises(OptionError, match="adapter is 'cats'"):
        shapes_model.batch([], adapter="cats")
