"""Objects in the forms of other programs, read by those programs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from starlette.testclient import TestClient

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.results.mask import inside
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.serve.coco_format import coco_document
from paligemma_edge.runtime.serve.inference_format import inference_document
from paligemma_edge.runtime.serve.mask_png import mask_png
from paligemma_edge.runtime.text.parse_answer import Box
from tests.helpers.detections import NO_PIXELS, detection, disc, results
from tests.helpers.detections import result as detections_result
from tests.helpers.typed_app import as_text, asked, error_of, running_app, streamed

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
    import supervision

# pycocotools decodes masks in the way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LABELS = ["star", "circle", "square"]


@pytest.fixture(scope="module")
def client(shapes_bundle: Path) -> Iterator[TestClient]:
    with running_app(shapes_bundle) as app:
        yield TestClient(app, "http://localhost")


@pytest.fixture(scope="module")
def image(shapes_model: PaliGemma, shapes_images: Path) -> Path:
    """The image with the most objects."""
    paths = sorted(shapes_images.glob("[0-9]*.png"))[:8]
    return max(paths, key=lambda path: len(shapes_model.segment(path, LABELS)))


@pytest.fixture(scope="module")
def result(shapes_model: PaliGemma, image: Path) -> ObjectResult:
    result = shapes_model.segment(image, LABELS)
    assert len(result) > 1
    return result


def test_supervision_reads_inference_with_masks(
    client: TestClient, image: Path, result: ObjectResult
) -> None:
    answer = asked(client, "segment", image, labels=LABELS, format="inference")
    found, expected = supervision.Detections.from_inference(answer), result.to_supervision()
    np.testing.assert_allclose(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_array_equal(found["class_name"], expected["class_name"])
    assert found.confidence is not None
    assert list(found.confidence) == [one.confidence for one in result]
    assert answer["image"] == {"width": result.width, "height": result.height}
    assert answer["time"] > 0
    assert len({one["detection_id"] for one in answer["predictions"]}) == len(result)


def test_supervision_reads_inference_without_masks(
    client: TestClient, image: Path, result: ObjectResult
) -> None:
    fields: dict[str, Any] = {"labels": LABELS, "format": "inference"}
    without = asked(client, "segment", image, **fields, masks="none")
    found = supervision.Detections.from_inference(without)
    assert found.mask is None
    assert len(found) == len(result)
    nothing = asked(client, "detect", image, **fields, min_confidence=1)
    assert len(supervision.Detections.from_inference(nothing)) == 0


def test_pycocotools_reads_coco(client: TestClient, image: Path, result: ObjectResult) -> None:
    answer = asked(client, "segment", image, labels=LABELS, format="coco")
    coco = COCO()
    coco.dataset = answer
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    (shown,) = answer["images"]
    assert (shown["width"], shown["height"]) == (result.width, result.height)
    assert shown["file_name"].startswith("img_")
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[shown["id"]]))
    assert len(annotations) == len(result)
    for annotation, expected in zip(annotations, result, strict=True):
        (category,) = coco.loadCats(annotation["category_id"])
        assert category["name"] == expected.label
        assert annotation["score"] == expected.confidence
        mask = coco.annToMask(annotation).astype(bool)
        np.testing.assert_array_equal(mask, expected.mask)
        assert annotation["area"] == mask.sum()
    assert [one["name"] for one in answer["categories"]][: len(LABELS)] == LABELS


def test_coco_without_masks_has_the_area_of_boxes(client: TestClient, image: Path) -> None:
    answer = asked(client, "segment", image, labels=LABELS, format="coco", masks="none")
    for one in answer["annotations"]:
        assert "segmentation" not in one
        assert one["area"] == one["bbox"][2] * one["bbox"][3]


def test_masks_are_given_as_runs_png_or_not(
    client: TestClient, image: Path, result: ObjectResult
) -> None:
    for form in ("rle", "png", "none"):
        answer = asked(client, "segment", image, labels=LABELS, masks=form)
        events = streamed(client, "segment", image, labels=LABELS, masks=form)
        objects = [one.data["object"] for one in events if one.name == "object"]
        assert objects == answer["objects"]
        for one, expected in zip(objects, result, strict=True):
            if form == "none":
                assert "mask" not in one
            elif form == "rle":
                mask = coco_masks.decode(one["mask"]).astype(bool)
                np.testing.assert_array_equal(mask, expected.mask)
            else:
                assert one["mask"]["box"] == one["xyxy"]
                x0, y0, x1, y1 = one["xyxy"]
                levels = _levels(base64.b64decode(one["mask"]["png"]))
                soft = expected.soft_mask
                assert soft is not None
                np.testing.assert_allclose(levels / 255, soft[y0:y1, x0:x1], atol=1e-6)
                np.testing.assert_array_equal(
                    inside(levels / np.float32(255)),
                    expected.mask[y0:y1, x0:x1],  # type: ignore[index]
                )


@pytest.mark.parametrize("form", ["coco", "inference"])
def test_a_format_holds_one_answer_of_objects(client: TestClient, image: Path, form: str) -> None:
    sent = {"image": as_text(image), "format": form}
    for task, fields in (
        ("generate", {"prompt": "caption en"}),
        ("generate", {"prompts": ["detect star"]}),
        ("detect", {"labels": ["star"], "stream": True}),
        ("segment", {"labels": ["star"], "masks": "png"}),
    ):
        response = client.post(f"/v1/{task}", json={**sent, **fields})
        assert response.status_code == 400
        assert "format" in error_of(response)["message"]
    assert asked(client, "generate", image, prompt="segment star", format=form)


def test_a_box_without_pixels_has_no_mask() -> None:
    objects = [detection(box=box, decoded=disc()) for box in (NO_PIXELS, Box(0.5, 0.5, 0.5, 0.9))]
    assert list(map(mask_png, objects)) == [None, None]
    flat = detections_result(objects)
    assert coco_document(flat, "img_1").annotations == []
    predictions = inference_document(flat, 1.0).predictions
    assert [one.width >= 0 and one.height >= 0 for one in predictions] == [True, True]


@given(results())
def test_any_objects_are_read_as_inference(given_result: ObjectResult) -> None:
    body = msgspec.json.encode(inference_document(given_result, 1.0))
    found = supervision.Detections.from_inference(json.loads(body))
    expected = given_result.to_supervision()
    np.testing.assert_allclose(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    if len(given_result) and all(one.decoded_mask is not None for one in given_result):
        np.testing.assert_array_equal(found.mask, expected.mask)
    else:
        assert found.mask is None


@given(results())
def test_any_objects_are_coco(given_result: ObjectResult) -> None:
    document = json.loads(msgspec.json.encode(coco_document(given_result, "img_1")))
    names = {one["id"]: one["name"] for one in document["categories"]}
    assert set(given_result.classes) <= set(names.values())
    for annotation in document["annotations"]:
        assert annotation["category_id"] in names
        if "segmentation" in annotation:
            assert coco_masks.area(annotation["segmentation"]) == annotation["area"]


def _levels(png: bytes) -> Any:  # noqa: ANN401
    image = Image.open(io.BytesIO(png))
    assert image.mode == "L"
    return np.asarray(image)
