import copy
import dataclasses
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from pycocotools.coco import COCO

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.results import rle
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.text.parse_answer import Box
from tests.helpers.detections import BOX, HEIGHT, NO_PIXELS, WIDTH, detection, disc, result, results

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
    import supervision as sv

CATEGORIES = {"cat": 3, "dog": 7, "": 8, "日本": 9}
TWO = result([detection("cat", decoded=disc()), detection("dog", Box(0, 0.5, 1, 1), log_prob=-1.5)])


def mask_of(one: Detection) -> NDArray[np.bool_]:
    assert one.mask is not None
    return one.mask


def has_pixels(one: Detection) -> bool:
    x0, y0, x1, y1 = one.xyxy
    return x1 > x0 and y1 > y0


def class_names(detections: sv.Detections) -> NDArray[Any]:
    names = detections.data[sv.config.CLASS_NAME_DATA_FIELD]
    assert isinstance(names, np.ndarray)
    return names


def read_json(answer: ObjectResult) -> dict[str, Any]:
    """What a reader gets that knows nothing of NaN."""
    read: dict[str, Any] = json.loads(answer.to_json())
    return read


def test_json_holds_all_that_was_found() -> None:
    read = read_json(TWO)
    mask = read["objects"][0].pop("mask")
    assert read == {
        "prompt": "detect cat ; dog",
        "text": "<loc0256> cat",
        "confidence": math.exp(-0.25),
        "log_prob": -0.25,
        "finish_reason": "stop",
        "width": 60,
        "height": 40,
        "classes": ["cat", "dog"],
        "objects": [
            {
                "label": "cat",
                "class_id": 0,
                "confidence": math.exp(-0.5),
                "log_prob": -0.5,
                "xyxy": [6, 10, 36, 30],
                "xyxy_normalized": [0.1, 0.25, 0.6, 0.75],
            },
            {
                "label": "dog",
                "class_id": 1,
                "confidence": math.exp(-1.5),
                "log_prob": -1.5,
                "xyxy": [30, 0, 60, 40],
                "xyxy_normalized": [0.5, 0.0, 1.0, 1.0],
            },
        ],
    }
    assert np.array_equal(rle.decode(**mask), mask_of(TWO[0]))


def test_notes_are_in_json_where_there_are_some() -> None:
    assert read_json(result(notes=("boxes alone",)))["notes"] == ["boxes alone"]
    assert "notes" not in read_json(result())


def test_what_is_impossible_has_a_log_prob_in_json() -> None:
    read = read_json(result([detection(log_prob=-math.inf)], log_prob=-math.inf))
    for one in (read, read["objects"][0]):
        assert math.isfinite(one["log_prob"]) and math.exp(one["log_prob"]) == 0
        assert one["confidence"] == 0


@settings(max_examples=60)
@given(results())
def test_the_mask_in_json_is_that_of_the_object(answer: ObjectResult) -> None:
    for one, read in zip(answer, read_json(answer)["objects"], strict=True):
        assert ("mask" in read) == (one.mask is not None)
        if one.mask is not None:
            assert np.array_equal(rle.decode(**read["mask"]), one.mask)


def coco_file(answer: ObjectResult, folder: Path) -> Path:
    path = folder / "instances.json"
    content = {
        "images": [{"id": 5, "file_name": "5.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": answer.to_coco(image_id=5, categories=CATEGORIES),
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
    }
    path.write_text(json.dumps(content, allow_nan=False))
    return path


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # theirs
def test_pycocotools_reads_a_file_of_annotations(tmp_path: Path) -> None:
    coco = COCO(coco_file(TWO, tmp_path))
    assert coco.getAnnIds(imgIds=[5], catIds=[3]) == [1]
    assert coco.getAnnIds(imgIds=[5], catIds=[7]) == [2]
    first, second = coco.loadAnns([1, 2])
    mask = mask_of(TWO[0])
    assert mask.any()
    assert np.array_equal(coco.annToMask(first), mask)
    assert first["area"] == mask.sum()
    assert (first["bbox"], second["bbox"]) == ([6, 10, 30, 20], [30, 0, 30, 40])
    assert (second["area"], "segmentation" in second) == (1200, False)
    assert (first["iscrowd"], second["iscrowd"]) == (0, 0)
    assert first["score"] == pytest.approx(math.exp(-0.5))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # theirs
@pytest.mark.parametrize("only_masks", [False, True])
def test_pycocotools_takes_annotations_as_results(tmp_path: Path, only_masks: bool) -> None:
    annotations = TWO.to_coco(image_id=5, categories=CATEGORIES)[: 1 if only_masks else 2]
    if only_masks:
        del annotations[0]["bbox"]  # as an evaluation of masks wants them
    taken = COCO(coco_file(TWO, tmp_path)).loadRes(copy.deepcopy(annotations))
    assert np.array_equal(taken.annToMask(taken.anns[1]), mask_of(TWO[0]))
    assert [ann["score"] for ann in taken.anns.values()] == [a["score"] for a in annotations]


def test_annotations_are_numbered_and_those_without_pixels_left_out() -> None:
    answer = result(
        [detection("dog"), detection("nothing known", NO_PIXELS, disc()), detection("cat")]
    )
    annotations = answer.to_coco(image_id=2, categories=CATEGORIES, first_id=10)
    assert [(a["id"], a["image_id"], a["category_id"]) for a in annotations] == [
        (10, 2, 7),
        (11, 2, 3),
    ]


def test_a_mask_without_pixels_in_its_box_has_no_area() -> None:
    (annotation,) = result([detection(decoded=disc(-9))]).to_coco(categories=CATEGORIES)
    assert (annotation["area"], annotation["bbox"]) == (0, [6, 10, 30, 20])
    assert not rle.decode(**annotation["segmentation"]).any()


@given(results())
def test_a_confidence_is_the_same_number_in_every_format(answer: ObjectResult) -> None:
    wanted = [one.confidence for one in answer]
    assert all(0 <= confidence <= 1 for confidence in wanted)
    assert wanted == [math.exp(one.log_prob) for one in answer]
    assert [one["confidence"] for one in read_json(answer)["objects"]] == wanted
    assert [row["confidence"] for row in answer.to_rows()] == wanted
    scores = [annotation["score"] for annotation in answer.to_coco(categories=CATEGORIES)]
    assert scores == [one.confidence for one in answer if has_pixels(one)]
    rounded = np.array(wanted, np.float32).tolist()
    assert answer.to_numpy()["confidence"].tolist() == rounded
    confidence = answer.to_supervision().confidence
    assert confidence is not None and confidence.tolist() == rounded


def test_rows_are_what_pandas_takes() -> None:
    assert TWO.to_rows() == [
        {
            "prompt": "detect cat ; dog",
            "label": label,
            "class_id": class_id,
            "confidence": math.exp(log_prob),
            "log_prob": log_prob,
            "x0": x0,
            "y0": y0,
            "x1": x1,
            "y1": y1,
        }
        for label, class_id, log_prob, (x0, y0, x1, y1) in (
            ("cat", 0, -0.5, (6, 10, 36, 30)),
            ("dog", 1, -1.5, (30, 0, 60, 40)),
        )
    ]
    assert result().to_rows() == []


def test_a_label_that_is_no_category_is_named() -> None:
    with pytest.raises(OptionError, match="names 'dog', and the categories are 'cat', 'owl'"):
        TWO.to_coco(categories={"cat": 1, "owl": 2})
    with pytest.raises(OptionError, match="categories are none"):
        TWO.to_coco(categories={})


@pytest.mark.parametrize("number", [0, -1, "a"])
def test_an_id_that_coco_takes_for_none_is_refused(number: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=f"first_id is {number!r}, wanted a whole"):
        TWO.to_coco(categories=CATEGORIES, first_id=number)


def test_supervision_has_the_same_objects() -> None:
    answer = result(
        [detection("dog", decoded=disc()), detection("cat"), detection("dog", NO_PIXELS, disc())]
    )
    detections = answer.to_supervision()
    assert detections.xyxy.dtype == np.float64
    assert detections.xyxy.tolist() == [[6, 10, 36, 30], [6, 10, 36, 30], [6, 8, 54, 20]]
    assert detections.confidence == pytest.approx([math.exp(-0.5)] * 3)
    assert detections.class_id is not None and isinstance(detections.mask, np.ndarray)
    assert detections.class_id.tolist() == [1, 0, 1]
    assert class_names(detections).tolist() == ["dog", "cat", "dog"]
    assert detections.mask.dtype == bool
    assert detections.mask.shape == (3, HEIGHT, WIDTH)
    assert np.array_equal(detections.mask[0], mask_of(answer[0]))
    assert not detections.mask[1:].any()


def test_supervision_has_no_masks_where_no_object_has_one() -> None:
    detections = result([detection(), detection("dog")]).to_supervision()
    assert (len(detections), detections.mask) == (2, None)


def test_supervision_draws_what_was_found() -> None:
    scene = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawn = sv.MaskAnnotator().annotate(scene.copy(), result([TWO[0]]).to_supervision())
    assert np.array_equal((drawn != scene).any(-1), mask_of(TWO[0]))


def test_nothing_found_is_empty_in_supervision() -> None:
    detections = result().to_supervision()
    assert detections.is_empty()
    assert (class_names(detections).shape, class_names(detections).dtype.kind) == ((0,), "U")
    detections.data.clear()
    assert detections == sv.Detections.empty()
    again = sv.Detections.merge([result().to_supervision(), TWO.to_supervision()])
    assert class_names(again).tolist() == ["cat", "dog"]


@given(results())
def test_supervision_takes_any_result(answer: ObjectResult) -> None:
    detections = answer.to_supervision()
    assert len(detections) == len(answer)
    for place, one in enumerate(answer):
        if one.mask is not None:
            assert detections.mask is not None
            assert np.array_equal(detections.mask[place], one.mask)


def test_supervision_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match="run: pip install supervision") as caught:
        TWO.to_supervision()
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_array_has_a_row_for_each_object() -> None:
    array = result([*TWO.objects, detection("a long label", NO_PIXELS)]).to_numpy()
    assert array.dtype.names == ("label", "class_id", "confidence", "xyxy", "xyxy_normalized")
    assert array["label"].tolist() == ["cat", "dog", "a long label"]
    assert array["class_id"].tolist() == [0, 1, -1]
    assert array["confidence"] == pytest.approx(np.exp([-0.5, -1.5, -0.5]))
    assert array["xyxy"].tolist() == [[6, 10, 36, 30], [30, 0, 60, 40], [54, 20, 6, 8]]
    assert array["xyxy_normalized"][0] == pytest.approx([BOX.x0, BOX.y0, BOX.x1, BOX.y1])
    kinds = [array[name].dtype.str for name in array.dtype.names[1:]]
    assert kinds == ["<i4", "<f4", "<i4", "<f4"]


def test_an_array_of_nothing_has_the_same_fields() -> None:
    nothing, nameless = result().to_numpy(), result([detection("")]).to_numpy()
    assert (nothing.shape, nothing["xyxy"].shape) == ((0,), (0, 4))
    assert nothing.dtype == nameless.dtype
    assert nameless["label"].tolist() == [""]


def test_without_categories_the_requested_labels_are_numbered_first() -> None:
    answer = dataclasses.replace(TWO, classes=("zebra", "dog"))
    cat, dog = (annotation["category_id"] for annotation in answer.to_coco())
    assert (cat > 2, dog) == (True, 2)


def class_ids(*labels: str) -> list[int]:
    found = result([detection(label) for label in labels]).to_supervision().class_id
    assert found is not None
    return [int(number) for number in found]


def test_a_label_that_is_no_class_has_the_same_id_in_every_result() -> None:
    answer = result([detection(label) for label in ("owl", "dog", "bee", "owl")])
    assert [one.class_id for one in answer] == [-1, 1, -1, -1]
    owl, dog, bee, again = class_ids("owl", "dog", "bee", "owl")
    assert (owl, dog, [bee, owl]) == (again, 1, class_ids("bee", "owl"))
    assert len({owl, bee, *class_ids("", "日本")}) == 4
    assert min(owl, bee, *class_ids("", "日本")) >= 2
    assert max(owl, bee) < 2**31
    annotations = answer.to_coco()
    assert [one["category_id"] for one in annotations] == [owl + 1, 2, bee + 1, owl + 1]


def test_categories_are_a_mapping() -> None:
    wrong: Any = ["cat"]
    with pytest.raises(OptionError, match="wanted the id of each label"):
        TWO.to_coco(categories=wrong)
