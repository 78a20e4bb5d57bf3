import json
from typing import Any

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.rle import area, decode, encode

Mask = NDArray[np.bool_]


def by_pycocotools(mask: Mask) -> dict[str, Any]:
    runs: dict[str, Any] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise of any density, and shapes whose runs are long."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    noise: Mask = random.random((height, width)) < draw(st.sampled_from([0, 0.02, 0.5, 0.98, 1]))
    scale = draw(st.sampled_from([1, 1, 7]))
    return noise.repeat(scale, 0).repeat(scale, 1)


@settings(max_examples=300)
@given(masks())
def test_a_mask_is_written_as_pycocotools_writes_it(mask: Mask) -> None:
    runs, wanted = encode(mask), by_pycocotools(mask)
    assert runs.to_dict() == wanted
    assert json.loads(json.dumps(runs.to_dict())) == wanted
    assert runs.area == area(wanted["counts"]) == coco.area(wanted) == mask.sum()
    assert list(runs.bbox) == list(coco.toBbox(wanted))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # theirs
@settings(max_examples=300)
@given(masks())
def test_each_reads_what_the_other_wrote(mask: Mask) -> None:
    runs = encode(mask)
    assert np.array_equal(coco.decode(runs.to_dict()), mask)
    theirs = by_pycocotools(mask)
    for counts in (theirs["counts"], theirs["counts"].encode(), runs.counts.tolist()):
        read = decode(theirs["size"], counts)
        assert read.dtype == bool
        assert np.array_equal(read, mask)


@given(masks(), *[st.integers(0, 20)] * 4)
def test_a_part_is_written_as_the_whole(
    part: Mask, above: int, left: int, below: int, right: int
) -> None:
    whole = np.pad(part, ((above, below), (left, right)))
    assert encode(part, at=(above, left), size=whole.shape).to_dict() == by_pycocotools(whole)


@pytest.mark.parametrize("shape", [(1, 1), (5000, 3), (3, 5000), (2000, 3000)])
@pytest.mark.parametrize("kind", ["nothing", "everything", "disc"])
def test_runs_of_any_length(shape: tuple[int, int], kind: str) -> None:
    rows, columns = (np.linspace(-1, 1, side) for side in shape)
    radius = {"nothing": -1.0, "everything": 9.0, "disc": 0.7}[kind]
    mask = rows[:, None] ** 2 + columns**2 < radius * abs(radius)
    runs = encode(mask)
    assert runs.to_dict() == by_pycocotools(mask)
    assert np.array_equal(decode(runs.size, runs.compressed), mask)


def test_a_part_without_pixels_is_an_empty_mask() -> None:
    runs = encode(np.zeros((0, 0), bool), at=(5, 5), size=(10, 20))
    assert (runs.to_dict(), runs.area) == (by_pycocotools(np.zeros((10, 20), bool)), 0)


@given(st.text(max_size=12), st.integers(1, 6), st.integers(1, 6))
def test_any_text_is_a_mask_of_that_size_or_refused(text: str, height: int, width: int) -> None:
    try:
        assert decode((height, width), text).shape == (height, width)
    except OptionError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("counts", ["", "0é", "0p", "P", "~", " 0", "0\n"])
def test_text_that_is_no_runs_is_refused(counts: str) -> None:
    with pytest.raises(OptionError, match="not a COCO string"):
        decode((2, 3), counts)


@pytest.mark.parametrize("counts", [[5], [7], [-1, 7], [3, 4], [8, -2], "5", [2**40], [2**64 - 1]])
def test_runs_of_another_size_are_refused(counts: str | list[int]) -> None:
    with pytest.raises(OptionError, match="do not make up 2 x 3 pixels"):
        decode((2, 3), counts)


def test_a_run_that_no_image_has_is_refused() -> None:
    with pytest.raises(OptionError, match="too long for any image"):
        decode((2, 3), "PPPPPPPPPPPPPPP0")


@pytest.mark.parametrize(
    "counts", [[6.0], [True, False], [[6]], [[1], [2, 3]], [None], [2**70], []]
)
def test_lists_that_are_no_runs_are_refused(counts: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match="neither a list of whole numbers"):
        decode((2, 3), counts)


@pytest.mark.parametrize("size", [(2,), (2, 3, 4), (-2, -3), (2.0, 3), ("2", "3"), (10**9, 10**9)])
def test_sizes_that_no_mask_has_are_refused(size: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"wanted \[height, width\]"):
        decode(size, [6])
