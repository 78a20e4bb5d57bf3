"""A label has the same id in all records of a run, whatever is asked and answered before it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.run import job
from paligemma_edge.runtime.run.class_ids import ClassIds
from paligemma_edge.runtime.run.journal import Journal
from paligemma_edge.runtime.run.options import RunOptions
from paligemma_edge.runtime.run.sources import Sources
from paligemma_edge.runtime.run.writers import finish

PROMPTS = ("detect cat ; dog", "caption en", "segment dog ; bee", "detect all classes", "detect")
FIELDS = {"text": "…", "confidence": 0.75, "log_prob": -0.25, "width": 9, "height": 9}


def record(image: str, prompt: str, *labels: str) -> dict[str, Any]:
    """A record as a run's journal has it: ids of its own prompt's labels."""
    objects = [
        {"label": one, "class_id": -1, "confidence": 1, "xyxy": [0, 0, 2, 2]} for one in labels
    ]
    return {"image": image, "prompt": prompt, **FIELDS, "classes": [], "objects": objects}


def ids(numbered: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(one["label"], one["class_id"]) for one in numbered["objects"]]


def test_labels_asked_for_come_first_then_others_as_they_appear() -> None:
    classes = ClassIds(PROMPTS)
    first = classes.number(record("a", PROMPTS[0], "owl", "bee", "dog", "owl", ""))
    assert ids(first) == [("owl", 3), ("bee", 2), ("dog", 1), ("owl", 3), ("", 4)]
    assert first["classes"] == ["cat", "dog", "bee"]
    second = classes.number(record("b", PROMPTS[3], "ant", "owl", "cat"))
    assert ids(second) == [("ant", 5), ("owl", 3), ("cat", 0)]
    assert ids(classes.number(record("a", PROMPTS[0], "owl"))) == [("owl", 3)]


def test_words_and_errors_have_no_ids() -> None:
    for other in (
        {"image": "a", "prompt": "caption en", "text": "x"},
        {"image": "a", "error": "x"},
    ):
        assert ClassIds(PROMPTS).number(other) == other


RECORDS = (
    record("a.jpg", PROMPTS[0], "owl", "dog"),
    record("a.jpg", PROMPTS[2], "bee", "dog"),
    {"image": "b.jpg", "prompt": PROMPTS[0], "error": "b.jpg: damaged"},
    record("b.jpg", PROMPTS[2], "ant", "owl"),
)
WANTED = {"cat": 0, "dog": 1, "bee": 2, "owl": 3, "ant": 4}


def written(target: Path, order: Sequence[int]) -> str:
    """The file of records that were answered in this order."""
    with Journal.open(target, {"run": 1}) as journal:
        for place in order:
            journal.append(RECORDS[place])
        finish(journal, [(one["image"], one["prompt"]) for one in RECORDS], target)
    return target.read_text("utf-8")


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_every_format_has_the_same_ids_however_answers_came(
    order: Sequence[int], tmp_path: Path
) -> None:
    rows = csv.DictReader(io.StringIO(written(tmp_path / "x.csv", order), newline=""))
    found = {(row["label"], int(row["class_id"])) for row in rows if row["label"]}
    assert found == {(name, n) for name, n in WANTED.items() if name != "cat"}
    lines = [json.loads(line) for line in written(tmp_path / "x.jsonl", order).splitlines()]
    assert {pair for line in lines if "objects" in line for pair in ids(line)} == found
    assert all(line["classes"] == ["cat", "dog", "bee"] for line in lines if "objects" in line)
    coco = json.loads(written(tmp_path / "x.json", order))
    assert coco["categories"] == [{"id": n + 1, "name": name} for name, n in WANTED.items()]
    labels = {entry["id"]: entry["name"] for entry in coco["categories"]}
    named = [labels[one["category_id"]] for one in coco["annotations"]]
    assert named == ["owl", "dog", "bee", "dog", "ant", "owl"]


def test_the_command_line_prints_and_writes_the_same_ids(
    shapes_bundle: Path,
    shapes_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three prompts about several images; the model names others than those asked for, too."""
    paths = [str(shapes_images / f"0{n}.png") for n in range(4)]
    also = ["--also", "detect circle", "--also", "detect star ; square", "--json"]
    command = ["run", str(shapes_bundle), "detect triangle", *paths, *also, "--max-batch-size", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == printed
    by_label: dict[str, set[int]] = {}
    for one in (one for line in printed for one in line["objects"]):
        by_label.setdefault(one["label"], set()).add(one["class_id"])
    assert all(len(found) == 1 for found in by_label.values())
    assert printed[0]["classes"] == ["triangle", "circle", "star", "square"]
    places = {name: {place} for place, name in enumerate(printed[0]["classes"])}
    assert {name: by_label[name] for name in by_label if name in places}.items() <= places.items()
    assert len(by_label) > 1


def test_what_is_printed_goes_on_with_the_ids_of_an_interrupted_run(tmp_path: Path) -> None:
    options = RunOptions(bundle="x", prompt=PROMPTS[0], also=PROMPTS[2:3], paths=["a"], json=True)
    with Journal.open(tmp_path / "x.jsonl", {"run": 1}) as journal:
        journal.append(RECORDS[0])
        classes = job._classes(options, Sources(()), journal)
    assert ids(classes.number(record("c", PROMPTS[0], "ant", "owl"))) == [("ant", 4), ("owl", 3)]
