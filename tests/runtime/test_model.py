"""The facade on the sample model: order, slots, several images, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma_edge import PaliGemma, TopSampling
from paligemma_edge.runtime.errors import ImageError, OptionError, PaliGemmaError, PromptError
from paligemma_edge.runtime.generation.loop import generate
from paligemma_edge.runtime.generation.request_list import Images
from paligemma_edge.runtime.images.load import ImageInput, load_image

FEW = 12  # tokens of an answer: enough for the lengths to differ


@pytest.fixture(scope="module")
def images(shapes_images: Path) -> list[Path]:
    return sorted(p for p in shapes_images.glob("*.png") if "masks" not in p.name)[:3]


def test_a_batch_keeps_the_order_and_equals_single_answers(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    requests: list[tuple[Images, str]] = [
        (images[0], "caption en"),
        ([*images[:2]], "caption en"),
        (images[1], "answer en how many shapes are there?"),
        (images[2], "detect circle ; square"),
    ]
    batch = shapes_model.generate_batch(requests, max_batch_size=2, max_new_tokens=FEW)
    alone = [shapes_model.generate_batch([one], max_new_tokens=FEW)[0] for one in requests]
    assert batch == alone
    assert [g.prompt for g in batch] == [prompt for _, prompt in requests]


def test_the_kinds_of_images_give_one_answer(shapes_model: PaliGemma, images: list[Path]) -> None:
    image = Image.open(images[0]).convert("RGB")
    kinds: list[ImageInput] = [
        str(images[0]),
        images[0],
        images[0].read_bytes(),
        image,
        np.asarray(image),
    ]
    answers = {
        shapes_model.generate(kind, "caption en", max_new_tokens=FEW).token_ids for kind in kinds
    }
    assert len(answers) == 1


def test_a_stream_is_the_answer_in_pieces(shapes_model: PaliGemma, images: list[Path]) -> None:
    whole = shapes_model.generate(images[0], "caption en", max_new_tokens=FEW)
    pieces = list(shapes_model.stream(images[0], "caption en", max_new_tokens=FEW))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_a_stream_is_checked_by_the_call(shapes_model: PaliGemma) -> None:
    with pytest.raises(OptionError, match="max_new_tokens"):
        shapes_model.stream(b"x", "caption en", max_new_tokens=0)
    with pytest.raises(PromptError, match="after its start"):
        shapes_model.stream(b"x", "cap <image>")


def test_threads_and_a_stream_left_early_change_no_answer(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    def answer(image: Path) -> tuple[int, ...]:
        left = shapes_model.stream(image, "caption en", max_new_tokens=FEW)
        next(left)
        del left
        return shapes_model.generate(image, "caption en", max_new_tokens=FEW).token_ids

    alone = [answer(image) for image in images]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answer, images * 2)) == alone * 2


def test_an_error_names_the_request(shapes_model: PaliGemma, images: list[Path]) -> None:
    good, wrong = (images[0], "caption en"), (b"x", "caption en")
    with pytest.raises(ImageError, match=r"requests\[1\]: the given bytes"):
        shapes_model.generate_batch([good, wrong], max_new_tokens=1)
    with pytest.raises(PromptError, match=r"requests\[1\]: the prompt has an <image> marker"):
        shapes_model.generate_batch([good, (images[0], "cap <image>")])


@pytest.mark.parametrize("requests", [None, "ab", ["ab"], [("a", "b", "c")], [3]])
def test_requests_are_pairs(shapes_model: PaliGemma, requests: Any) -> None:  # noqa: ANN401
    with pytest.raises(PromptError, match="wanted"):
        shapes_model.generate_batch(requests)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": "2"},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"max_batch_size": 1.5},
        {"max_batch_size": 0},
        {"sampling": "greedy"},
        {"sampling": TopSampling},
    ],
)
def test_options_of_a_wrong_type_are_reported_before_any_work(
    shapes_model: PaliGemma, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match=rf"{next(iter(options))} is .*, wanted"):
        shapes_model.generate_batch([(b"never read", "caption en")], **options)


def test_a_bundle_and_its_threads_have_a_type(shapes_bundle: Path) -> None:
    nothing: Any = None
    text: Any = "2"
    with pytest.raises(OptionError, match="the bundle is None"):
        PaliGemma(nothing)
    with pytest.raises(OptionError, match="threads is '2'"):
        PaliGemma(shapes_bundle, "cpu", "cpu-fp32", threads=text)


def test_a_limit_cuts_and_says_so(shapes_model: PaliGemma, images: list[Path]) -> None:
    cut = shapes_model.generate(images[0], "caption en", max_new_tokens=2)
    assert cut.finish_reason == "length"
    assert len(cut.token_ids) == 2


def test_a_seed_repeats_itself_and_another_does_not(
    shapes_model: PaliGemma, images: list[Path]
) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        policy = TopSampling(temperature=5.0, seed=seed)
        return shapes_model.generate(
            images[0], "caption en", max_new_tokens=FEW, sampling=policy
        ).token_ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_images_are_read_one_after_another(
    shapes_model: PaliGemma, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def load(source: ImageInput, **limits: int) -> Image.Image:
        events.append("read")
        return load_image(source, **limits)

    monkeypatch.setattr("paligemma_edge.runtime.images.batch.load_image", load)
    monkeypatch.setattr(
        "paligemma_edge.runtime.generation.pipeline.generate", _watched(generate, events)
    )
    shapes_model.generate_batch(
        [(p, "caption en") for p in images], max_batch_size=1, max_new_tokens=2
    )
    assert events == ["read", "token", "token"] * 3


def _watched(generate: Any, events: list[str]) -> Any:  # noqa: ANN401 - wraps any signature
    def watched(*arguments: object, **options: object) -> Iterator[object]:
        for item in generate(*arguments, **options):
            events.append("token")
            yield item

    return watched


def test_no_requests_need_no_run(shapes_model: PaliGemma) -> None:
    assert shapes_model.generate_batch([]) == []


@pytest.mark.parametrize(
    ("image", "prompt", "options", "error", "message"),
    [
        ([], "caption en", {}, OptionError, "image is a list of 0, wanted one image"),
        ("absent.png", "caption en", {}, ImageError, "absent.png"),
        (b"", "caption en", {}, ImageError, "the given bytes"),
        (np.zeros((4, 4, 3)), "caption en", {}, ImageError, "float64"),
        (3, "caption en", {}, ImageError, "int"),
        (b"x", "cap <image>", {}, PromptError, "after its start"),
        (b"x", "caption en", {"max_new_tokens": 0}, OptionError, "max_new_tokens is 0"),
        (b"x", "caption en", {"max_new_tokens": 9999}, PromptError, "lower max_new_tokens"),
    ],
)
def test_what_cannot_be_answered_is_reported_in_one_line(
    shapes_model: PaliGemma,
    image: Any,  # noqa: ANN401
    prompt: str,
    options: dict[str, Any],
    error: type[PaliGemmaError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        shapes_model.generate(image, prompt, **options)
    assert "\n" not in str(caught.value)


def test_a_list_of_images_says_both_ways(shapes_model: PaliGemma) -> None:
    several: Any = [b"x", b"y"]
    calls: list[Any] = [
        lambda: shapes_model.encode(several),
        lambda: shapes_model.detect(several, "star"),
        lambda: shapes_model.caption(several),
        lambda: shapes_model.generate(several, "ocr"),
        lambda: shapes_model.stream(several, "ocr"),
    ]
    for call in calls:
        with pytest.raises(OptionError, match="image is a list of 2, wanted one") as caught:
            call()
        assert "model.batch(images).detect(...)" in str(caught.value)
        assert "model.encode(first, second).ask(...)" in str(caught.value)


def test_a_closed_model_gives_its_memory_back_and_says_so(
    shapes_bundle: Path, images: list[Path]
) -> None:
    with PaliGemma(shapes_bundle, "cpu") as model:
        assert repr(model) == f"PaliGemma({str(shapes_bundle)!r}, variant='cpu-fp32', device='cpu')"
        engine = weakref.ref(model._loaded.engine)
        model.caption(images[0], max_new_tokens=2)
    gc.collect()
    assert engine() is None
    assert repr(model).endswith("device='cpu', closed)")
    assert (model.variant, model.device) == ("cpu-fp32", "cpu")
    with pytest.raises(OptionError, match="was closed; open the bundle again"):
        model.caption(images[0])
    model.close()


def test_an_encoded_image_outlives_its_model(shapes_bundle: Path, images: list[Path]) -> None:
    model = PaliGemma(shapes_bundle, "cpu")
    with model.encode(images[0]) as encoded:
        before = encoded.caption(max_new_tokens=3)
        model.close()
        assert encoded.caption(max_new_tokens=3) == before


def test_options_of_numpy_answer_as_python_s_own(
    shapes_bundle: Path, shapes_model: PaliGemma, images: list[Path]
) -> None:
    limits: dict[str, Any] = {"threads": np.int64(2), "max_batch_size": np.uint8(2)}
    limits |= {"max_length": np.int32(300), "max_pixels": np.int64(10**8), "cuda_graph": np.False_}
    drawn: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int8(4)}
    drawn |= {"top_p": np.float64(0.9), "seed": np.uint64(3)}
    few: Any = np.int64(FEW)
    constrained: Any = np.True_
    with PaliGemma(np.str_(shapes_bundle), "cpu", np.str_("cpu-fp32"), **limits) as model:
        found = model.detect(
            images[0], np.array(["star", "cross"]), constrained=constrained, max_new_tokens=few
        )
        said = model.generate(
            images[0], np.str_("ocr"), sampling=TopSampling(**drawn), max_new_tokens=few
        )
    own = TopSampling(temperature=0.5, top_k=4, top_p=0.9, seed=3)
    assert (
        found.to_json()
        == shapes_model.detect(images[0], ["star", "cross"], max_new_tokens=FEW).to_json()
    )
    assert (
        said.text == shapes_model.generate(images[0], "ocr", sampling=own, max_new_tokens=FEW).text
    )
