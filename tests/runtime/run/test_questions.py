"""Questions in JSON Lines: what a line may be, and what becomes of one that is not that."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.run.questions import read_questions


def written(folder: Path, *lines: object) -> Path:
    file = folder / "questions.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("".join(f"{text}\n" for text in texts))
    return file


def test_each_line_has_its_own_image_and_prompt(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"image": "a.png", "prefix": "caption en", "suffix": "a cat"},
        {"prompt": "detect cat", "image": "x/b.png"},
        "",
        {"image": "/data/c.png", "prefix": "ocr"},
        {"image": "a.png", "prefix": "ocr"},
    )
    sources = read_questions(file, io.StringIO())
    assert [(one.name, one.image, one.prompts) for one in sources] == [
        ("a.png", str(tmp_path / "a.png"), ("caption en",)),
        ("x/b.png", str(tmp_path / "x/b.png"), ("detect cat",)),
        ("/data/c.png", "/data/c.png", ("ocr",)),
        ("a.png", str(tmp_path / "a.png"), ("ocr",)),
    ]
    assert (sources.count, sources.live, sources.paced) == (4, False, False)
    assert sources.relative("x/b.png") == "x/b.png"


def test_images_may_be_in_another_folder(tmp_path: Path) -> None:
    line = {"image": "a.png", "prefix": "ocr"}
    (named,) = read_questions(written(tmp_path, line), io.StringIO(), tmp_path / "photos")
    assert named.image == str(tmp_path / "photos" / "a.png")
    (here,) = read_questions("-", io.StringIO(json.dumps(line)))
    assert here.image == "a.png"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no json", "not JSON"),
        ("[" * 5000, "not JSON"),
        ([1], "not a JSON object"),
        ({"prefix": "ocr"}, '"image" is not the name of a file'),
        ({"image": 3, "prefix": "ocr"}, '"image" is not the name of a file'),
        ({"image": "a\0.png", "prefix": "ocr"}, '"image" is not the name of a file'),
        ({"image": "\ud800.png", "prefix": "ocr"}, '"image" is not the name of a file'),
        ({"image": "a.png"}, 'there is no text as "prefix" or "prompt"'),
        ({"image": "a.png", "prefix": 3}, 'there is no text as "prefix" or "prompt"'),
    ],
)
def test_a_line_that_cannot_be_used_is_the_error_of_its_place(
    tmp_path: Path, line: object, reason: str
) -> None:
    file = written(tmp_path, {"image": "a.png", "prefix": "ocr"}, line)
    good, bad = read_questions(file, io.StringIO())
    assert good.name == "a.png"
    assert (bad.name, bad.prompts) == (f"{file}:2", ("",))
    with pytest.raises(ImageError, match=f"questions.jsonl:2: {reason}, wanted"):
        bad.load()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--questions .*gone.jsonl: cannot be read \(No such"):
        read_questions(tmp_path / "gone.jsonl", io.StringIO())
    with pytest.raises(OptionError, match="has no line, wanted"):
        read_questions(written(tmp_path, ""), io.StringIO())
    with pytest.raises(OptionError, match="cannot be read"):
        read_questions(tmp_path, io.StringIO())
