"""Questions in JSON Lines: what a line may be, and what becomes of one that is not that."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.run import questions as questions_module
from paligemma_edge.runtime.run.questions import read_questions
from paligemma_edge.runtime.run.sources import find_sources
from paligemma_edge.runtime.run.text_lines import LONGEST_LINE


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


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_may_be_long_and_not_without_an_end(tmp_path: Path, end: str) -> None:
    line = json.dumps({"image": "a.png", "prefix": "ocr", "suffix": ""})
    whole = line.replace('""', f'"{"x" * (LONGEST_LINE - len(line) - len(end))}"')
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{line}\n{whole}{end}")
    assert [one.name for one in read_questions(file, io.StringIO())] == ["a.png"]
    file.write_text(f"{line}\n{whole}xy")
    with pytest.raises(OptionError, match=r"line 2 has more than 1,048,576 characters\)"):
        read_questions(file, io.StringIO())
    with file.open() as stdin, pytest.raises(OptionError, match="line 2 has more than"):
        read_questions("-", stdin)


def test_a_device_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"/dev/zero: cannot be read \(line 1 has more than"):
        read_questions("/dev/zero", io.StringIO())
    with Path("/dev/zero").open() as stdin, pytest.raises(OptionError, match="line 1 has more"):
        list(find_sources(["-"], stdin))


def test_more_lines_than_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_module, "_MOST_LINES", 3)
    line = {"image": "a.png", "prefix": "ocr"}
    assert read_questions(written(tmp_path, line, "", line), io.StringIO()).count == 2
    with pytest.raises(OptionError, match=r"more than 3 lines, ask in several runs"):
        read_questions(written(tmp_path, line, "", "", line), io.StringIO())


def test_a_pipe_that_is_given_on_purpose_is_read(tmp_path: Path) -> None:
    """As a shell gives `<(...)`, and as a named one whose other end is written to."""
    line = json.dumps({"image": "/data/a.png", "prefix": "ocr"})
    end, start = os.pipe()
    with os.fdopen(start, "w") as file:
        file.write(line)
    try:
        (named,) = read_questions(f"/dev/fd/{end}", io.StringIO())
    finally:
        os.close(end)
    assert named.image == "/data/a.png"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        pool.submit(pipe.write_text, line)
        (named,) = read_questions(pipe, io.StringIO())
    assert named.prompts == ("ocr",)


@pytest.mark.parametrize("asked", ["\ud800", "a\udfff", "detect ;", "x <image> y", "z" * 20_000])
def test_a_prompt_that_cannot_be_used_is_told_with_its_line(
    asked: str, shapes_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    good = {"image": "a.png", "prefix": "caption en"}
    file = written(tmp_path, good, {"image": "a.png", "prefix": asked})
    assert cli.main(["run", str(shapes_bundle), "--questions", str(file), "-q", "--json"]) == 1
    shown = capsys.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert "error" not in first
    assert second["prompt"] == asked
    assert second["error"].startswith(f"{file}:2: ")


def test_a_prompt_of_bytes_that_are_no_text_is_told_with_its_line(
    shapes_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    file = tmp_path / "latin-1.jsonl"
    file.write_bytes('{"image": "a.png", "prefix": "caption é"}'.encode("latin-1"))
    assert cli.main(["run", str(shapes_bundle), "--questions", str(file), "-q"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"paligemma-edge: {file}:1: the prompt holds half a character")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--questions .*gone.jsonl: cannot be read \(No such"):
        read_questions(tmp_path / "gone.jsonl", io.StringIO())
    with pytest.raises(OptionError, match="has no line, wanted"):
        read_questions(written(tmp_path, ""), io.StringIO())
    with pytest.raises(OptionError, match="cannot be read"):
        read_questions(tmp_path, io.StringIO())
