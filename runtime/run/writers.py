"""Records as a file that other programs read: JSON Lines, CSV or COCO.

Knows what records hold, and reads them one by one, so that a hundred thousand fit. Knows nothing
of a model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.formats import coco_annotation
from paligemma_edge.runtime.run.class_ids import ClassIds
from paligemma_edge.runtime.run.journal import Journal, Key, Record
from paligemma_edge.runtime.system.atomic_file import check_target, is_stream, written

# Records that can be read more than once, always in the same order.
Records: TypeAlias = Callable[[], Iterator[Record]]
Write: TypeAlias = Callable[[Records, TextIO], None]

COLUMNS = (
    *("image", "prompt", "variant", "adapter", "time", "width", "height"),
    *("text", "label", "class_id", "confidence", "log_prob", "x0", "y0", "x1", "y1"),
    *("finish_reason", "error"),
)
_OF_IMAGE = ("width", "height", "time")  # what COCO's entry of an image has besides its name
_OPTION = "--out"


def check_out(target: Path, *, overwrite: bool) -> None:
    """Check, before the model is opened, that answers can be written there after they came.

    OptionError for a suffix that stands for no format, OutputError for a file that exists
    already or cannot be written.
    """
    _writer(target)
    check_target(target, _OPTION, overwrite=overwrite)


def finish(
    journal: Journal, order: Iterable[Key], target: Path, relative: Callable[[str], str] = str
) -> None:
    """Write these records of a journal in this order, whole or not at all; then remove it.

    The suffix of `target` names the format; a stream without one, such as /dev/stdout, gets JSON
    Lines. Labels have the ids of the whole run. COCO has the names of images as `relative` gives
    them: below the folder of the data set.
    """
    keys, write = list(order), _writer(target)
    classes = ClassIds(prompt for _, prompt in keys)

    def records() -> Iterator[Record]:
        for record in journal.records(keys):
            named = relative(record["image"]) if write is write_coco else record["image"]
            yield {**classes.number(record), "image": named}

    with written(target, _OPTION) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        write(records, text)
        text.detach()
    journal.remove()


def write_jsonl(records: Records, file: TextIO) -> None:
    """One object a line, in ASCII."""
    for record in records():
        file.write(json.dumps(record) + "\n")


def write_csv(records: Records, file: TextIO) -> None:
    """One row for each object; one for an answer without objects, and one for an error.

    That of an answer without objects has no confidence, so that a filter by it finds objects only.

    Lines end in CR LF, so that a line break within a text is quoted, whichever it is, and is read
    as it was. Texts are written as they are: in a spreadsheet import the columns as text, for an
    answer that begins with "=" would be a formula there.
    """
    rows = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\r\n")
    rows.writeheader()
    for record in records():
        for detection in record.get("objects") or [{}]:
            rows.writerow(_row(record, detection))


def write_coco(records: Records, file: TextIO) -> None:
    """COCO: objects as `annotations`, with boxes, RLE masks and confidences (`score`).

    Captions and other texts are `annotations` where no answer has objects, as in COCO's caption
    files, and else `captions`. Images without an answer are `errors`. A category is a label
    that a prompt names, in the order of the prompts, or that an answer names; its id is the
    `class_id` of its objects and one. `info` says by which variant the answers were made.
    """
    images, categories = _surveyed(records())
    parts: dict[str, Iterable[Any]] = {
        "images": (_image(number, r) for number, r in images.values())
    }
    numbers = {name: number for name, (number, _) in images.items()}
    if categories is None:
        parts["annotations"] = _captions(records(), numbers)
    else:
        parts["categories"] = [
            {"id": n, "name": name} for name, n in sorted(categories.items(), key=itemgetter(1))
        ]
        parts["annotations"] = _annotations(records(), numbers, categories)
        parts["captions"] = _captions(records(), numbers)
    parts["errors"] = _errors(records())
    _write_lists(_info(next(records(), {})), parts, file)


_WRITERS: Mapping[str, Write] = {".jsonl": write_jsonl, ".csv": write_csv, ".json": write_coco}


def _writer(target: Path) -> Write:
    if not target.suffix and is_stream(target):
        return write_jsonl
    if target.suffix.lower() not in _WRITERS:
        raise OptionError(
            f"{_OPTION} {target}: wanted a name that ends in .jsonl (one object a line), "
            ".csv (one row an object) or .json (COCO)"
        )
    return _WRITERS[target.suffix.lower()]


def _row(record: Record, detection: Mapping[str, Any]) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), detection.get("xyxy", ()), strict=False))
    if record.get("objects") == []:  # how sure the model is of nothing is no object's confidence
        record = {**record, "confidence": "", "log_prob": ""}
    return {**record, **detection, **corners}


def _surveyed(
    records: Iterable[Record],
) -> tuple[dict[str, tuple[int, Record]], dict[str, int] | None]:
    """Each image's number and size, and each label's number; None where no answer has objects."""
    images: dict[str, tuple[int, Record]] = {}
    categories: dict[str, int] | None = None
    for record in records:
        if "error" in record:
            continue
        if record["image"] not in images:
            kept = {name: record[name] for name in ("image", *_OF_IMAGE) if name in record}
            images[record["image"]] = len(images) + 1, kept
        if "objects" in record:
            categories = {} if categories is None else categories
            categories.update({label: n for n, label in enumerate(record["classes"], 1)})
            categories.update({one["label"]: one["class_id"] + 1 for one in record["objects"]})
    return images, categories


def _image(number: int, record: Record) -> dict[str, Any]:
    more = {name: record[name] for name in _OF_IMAGE if name in record}
    return {"id": number, "file_name": record["image"], **more}


def _info(record: Record) -> dict[str, Any]:
    made_by = {name: record[name] for name in ("variant", "adapter") if name in record}
    return {"description": "answers of paligemma-edge", **made_by}


def _annotations(
    records: Iterable[Record], images: Mapping[str, int], categories: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """One for each object that has pixels: COCO has no place for the others."""
    number = 0
    for record in records:
        for detection in record.get("objects", ()):
            x0, y0, x1, y1 = detection["xyxy"]
            if x1 > x0 and y1 > y0:
                number += 1
                image_id, category_id = images[record["image"]], categories[detection["label"]]
                fields = coco_annotation(detection, image_id=image_id, category_id=category_id)
                yield {"id": number, **fields}


def _captions(records: Iterable[Record], images: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    texts = (record for record in records if "error" not in record and "objects" not in record)
    for number, record in enumerate(texts, 1):
        yield {
            "id": number,
            "image_id": images[record["image"]],
            "caption": record["text"],
            "prompt": record["prompt"],
            "score": record["confidence"],
        }


def _errors(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        if "error" in record:
            yield {
                "file_name": record["image"],
                "prompt": record["prompt"],
                "error": record["error"],
            }


def _write_lists(info: Record, parts: Mapping[str, Iterable[Any]], file: TextIO) -> None:
    """One object of `info` and lists, an entry a line, none of them held in memory."""
    file.write(f'{{\n"info": {json.dumps(info)}')
    for name, entries in parts.items():
        file.write(f",\n{json.dumps(name)}: [")
        for place, entry in enumerate(entries):
            file.write(f"{',' if place else ''}\n{json.dumps(entry)}")
        file.write("]")
    file.write("\n}\n")
