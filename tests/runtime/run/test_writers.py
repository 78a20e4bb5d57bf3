from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma_edge.runtime.errors import OptionError, OutputError
from paligemma_edge.runtime.results import rle
from paligemma_edge.runtime.run.class_ids import ClassIds
from paligemma_edge.runtime.run.journal import Journal, Key, journal_of
from paligemma_edge.runtime.run.writers import (
    COLUMNS,
    check_out,
    finish,
    write_coco,
    write_csv,
    write_jsonl,
)

MASK = np.zeros((80, 100), np.bool_)
MASK[20:40, 10:30] = True
MASK[20, 10] = False

BOXED = {
    "image": "a.jpg",
    "prompt": "detect dog ; cat",
    "text": "…",
    "confidence": 0.75,
    "log_prob": -0.25,
    "finish_reason": "length",
    "width": 100,
    "height": 80,
    "objects": [
        {"label": "cat", "class_id": 1, "confidence": 0.5, "xyxy": [1, 2, 31, 22]},
        {"label": "cat", "class_id": 1, "confidence": 0.25, "xyxy": [5, 6, 5, 9]},
    ],
}
MASKED = {
    **BOXED,
    "image": "b.jpg",
    "prompt": "segment sheep",
    "objects": [
        {
            "label": "sheep",
            "confidence": 1.0,
            "xyxy": [10, 20, 30, 40],
            "mask": rle.encode(MASK).to_dict(),
        }
    ],
}
NOTHING = {**BOXED, "image": "c.jpg", "finish_reason": "stop", "objects": []}
BROKEN = {"image": 'd, "e"\n.jpg', "prompt": "detect dog ; cat", "error": "d: empty"}
CAPTION = {
    "image": "a.jpg",
    "prompt": "caption en",
    "text": '=1+1, "x"\nand y',
    "confidence": 0.875,
    "log_prob": -0.125,
    "finish_reason": "stop",
    "width": 100,
    "height": 80,
}
ALL = (BOXED, CAPTION, MASKED, NOTHING, BROKEN)


def keys(records: Sequence[dict[str, Any]]) -> list[Key]:
    return [(record["image"], record["prompt"]) for record in records]


def coco(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The file of records with the ids of their run."""
    classes = ClassIds(record["prompt"] for record in records)
    file = io.StringIO()
    write_coco(lambda: map(classes.number, records), file)
    found: dict[str, Any] = json.loads(file.getvalue())
    return found


def test_json_lines_are_the_records() -> None:
    file = io.StringIO()
    write_jsonl(lambda: iter(ALL), file)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == list(ALL)
    assert file.getvalue().isascii()


def test_csv_has_a_row_for_each_object_and_one_for_what_has_none() -> None:
    file = io.StringIO()
    write_csv(lambda: iter(ALL), file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["image"], row["label"]) for row in rows] == [
        ("a.jpg", "cat"),
        ("a.jpg", "cat"),
        ("a.jpg", ""),
        ("b.jpg", "sheep"),
        ("c.jpg", ""),
        (BROKEN["image"], ""),
    ]
    first, _, caption, _, nothing, broken = rows
    assert [first[name] for name in ("x0", "y0", "x1", "y1")] == ["1", "2", "31", "22"]
    assert (first["class_id"], first["confidence"]) == ("1", "0.5")
    assert first["finish_reason"] == "length"
    assert caption["text"] == CAPTION["text"]
    assert (caption["confidence"], caption["log_prob"]) == ("0.875", "-0.125")
    assert (caption["x0"], caption["error"]) == ("", "")
    assert (nothing["x0"], nothing["finish_reason"]) == ("", "stop")
    assert (nothing["confidence"], nothing["log_prob"]) == ("", "")
    assert (broken["error"], broken["text"]) == ("d: empty", "")


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", 'a"b', '"', "a,b", "\r", ""])
def test_csv_keeps_every_character(text: str) -> None:
    file = io.StringIO(newline="")
    write_csv(lambda: iter([{**CAPTION, "text": text}]), file)
    (row,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert row["text"] == text


def test_coco_holds_images_labels_boxes_and_masks() -> None:
    found = coco(ALL)
    assert found["images"] == [
        {"id": n, "file_name": name, "width": 100, "height": 80}
        for n, name in enumerate(("a.jpg", "b.jpg", "c.jpg"), 1)
    ]
    names = [category["name"] for category in found["categories"]]
    assert names == ["dog", "cat", "sheep"]  # as they were asked for
    box, mask = found["annotations"]  # the box without pixels is left out
    assert box == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [1, 2, 30, 20],
        "area": 600,
        "iscrowd": 0,
        "score": 0.5,
    }
    assert (mask["id"], mask["image_id"], mask["category_id"], mask["score"]) == (2, 2, 3, 1.0)
    assert mask["area"] == MASK.sum()
    segmentation = mask["segmentation"]
    assert (rle.decode(segmentation["size"], segmentation["counts"]) == MASK).all()
    (caption,) = found["captions"]
    assert (caption["image_id"], caption["caption"]) == (1, CAPTION["text"])
    assert found["errors"] == [
        {"file_name": BROKEN["image"], "prompt": BROKEN["prompt"], "error": "d: empty"}
    ]


def test_coco_of_captions_alone_is_a_caption_file() -> None:
    found = coco((CAPTION, BROKEN))
    assert "categories" not in found
    (caption,) = found["annotations"]
    assert caption == {
        "id": 1,
        "image_id": 1,
        "caption": CAPTION["text"],
        "prompt": "caption en",
        "score": 0.875,
    }


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("records", [(), (BROKEN,), ALL, (CAPTION,), (NOTHING,)])
def test_pycocotools_reads_it(records: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    coco_tools = pytest.importorskip("pycocotools.coco")
    (tmp_path / "x.json").write_text(json.dumps(coco(records)))
    read = coco_tools.COCO(tmp_path / "x.json")
    for annotation in read.anns.values():
        if "segmentation" in annotation:
            assert (read.annToMask(annotation) == MASK).all()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".JSON"])
def test_the_file_takes_its_name_whole_and_the_journal_goes(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    check_out(target, overwrite=False)
    records = (*ALL, {**CAPTION, "image": "\udce9.png"})
    with Journal.open(target, {"run": 1}) as journal:
        for record in reversed(records):
            journal.append(record)
        finish(journal, keys(records), target)
    assert list(tmp_path.iterdir()) == [target]
    text = target.read_text("utf-8")
    names = ["a.jpg", "b.jpg", "c.jpg", "udce9"]
    assert sorted(map(text.index, names)) == list(map(text.index, names))
    with pytest.raises(OutputError, match="exists already"):
        check_out(target, overwrite=False)
    check_out(target, overwrite=True)


def test_a_file_that_cannot_be_finished_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(target, {"run": 1}) as journal:
        journal.append(BOXED)
        with monkeypatch.context() as patch, pytest.raises(OutputError, match="free some space"):
            patch.setattr(Path, "replace", full)
            finish(journal, keys([BOXED]), target)
    assert target.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", journal_of(target).name}
    with Journal.open(target, {"run": 1}) as journal:
        finish(journal, keys([BOXED]), target)
    assert "cat" in target.read_text()


def test_a_link_leads_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target = tmp_path / "out.jsonl"
    target.symlink_to(tmp_path / "data" / "real.jsonl")
    with Journal.open(target, {"run": 1}) as journal:
        journal.append(CAPTION)
        check_out(target, overwrite=False)
        finish(journal, keys([CAPTION]), target)
    assert target.is_symlink()
    assert json.loads((tmp_path / "data" / "real.jsonl").read_text()) == CAPTION


def test_a_link_whose_folder_is_missing_is_reported_at_once(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.symlink_to(tmp_path / "gone" / "real.jsonl")
    with pytest.raises(OutputError, match=r"there is no folder .*gone"):
        check_out(target, overwrite=True)


def test_an_unknown_suffix_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        check_out(tmp_path / "out.xml", overwrite=False)
    assert all(suffix in str(caught.value) for suffix in (".jsonl", ".csv", ".json"))
    with pytest.raises(OutputError, match="there is no folder"):
        check_out(tmp_path / "no" / "out.csv", overwrite=False)
    assert list(tmp_path.iterdir()) == []
