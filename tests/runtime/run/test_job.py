"""A run from Python: `run_images(RunOptions(...))` with a console that is read afterwards."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.errors import OptionError, OutputError
from paligemma_edge.runtime.run.job import run_images
from paligemma_edge.runtime.run.journal import Journal, journal_of
from paligemma_edge.runtime.run.options import RunOptions
from paligemma_edge.runtime.system.console import Console


class Captured:
    """Runs with this bundle, and what each one wrote."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    def run(self, *paths: str | Path, stdin: str = "", **given: Any) -> tuple[int, str, str]:  # noqa: ANN401
        """Its exit code, standard output and standard error."""
        console = Console(io.StringIO(), io.StringIO())
        given = {"prompt": "caption en", "max_new_tokens": 4, "device": "cpu", **given}
        options = RunOptions(bundle=self.bundle, paths=paths, **given)
        code = run_images(options, console=console, stdin=io.StringIO(stdin))
        assert isinstance(console.out, io.StringIO)
        assert isinstance(console.err, io.StringIO)
        return code, console.out.getvalue(), console.err.getvalue()


@pytest.fixture
def captured(shapes_bundle: Path) -> Captured:
    return Captured(shapes_bundle)


@pytest.fixture
def folder(tmp_path: Path, shapes_images: Path) -> Path:
    """Two images, and between them one that is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(shapes_images / "00.png", folder / "a.png")
    (folder / "b.png").write_text("no image")
    shutil.copy(shapes_images / "01.png", folder / "c.png")
    return folder


def test_many_images_are_written_to_a_file(
    captured: Captured, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    code, text, messages = captured.run(folder, out=out, also=["ocr"])
    assert (code, text) == (1, f"{out}: 4 answers, 2 failed\n")
    assert messages.count("b.png: not an image that can be read") == 2
    records = [json.loads(line) for line in out.read_text().splitlines()]
    asked = [(record["image"], record["prompt"]) for record in records]
    names = [f"{folder}/{letter}.png" for letter in "abc"]
    assert asked == [(name, prompt) for name in names for prompt in ("caption en", "ocr")]
    assert ["error" in record for record in records] == [False, False, True, True, False, False]
    assert not journal_of(out).exists()
    with pytest.raises(OutputError, match="exists already"):
        captured.run(folder, out=out)
    assert capfd.readouterr() == ("", "")  # all of it went to the console


def test_a_streamed_answer_is_that_of_the_model(
    captured: Captured, folder: Path, shapes_model: PaliGemma
) -> None:
    answer = shapes_model.generate(folder / "a.png", "caption en", max_new_tokens=4).text
    cut = f"{answer} [cut by --max-new-tokens]\n"
    assert captured.run(folder / "a.png", stream=True) == (0, cut, "")
    listed = captured.run("-", stdin=f"{folder}/a.png\n", stream=True, together=True)
    assert listed == (0, cut, "")
    assert captured.run(folder / "a.png", together=True) == (0, cut, "")
    whole = shapes_model.generate(folder / "a.png", "caption en")
    assert whole.finish_reason == "stop"
    streamed = captured.run(folder / "a.png", stream=True, max_new_tokens=None)
    assert streamed == (0, f"{whole.text}\n", "")


def test_images_together_have_one_answer(
    captured: Captured, folder: Path, shapes_model: PaliGemma
) -> None:
    images = folder / "a.png", folder / "c.png"
    answer = shapes_model.encode(*images).generate("caption en", max_new_tokens=4).text
    code, text, messages = captured.run(*images, together=True, json=True)
    record = json.loads(text)
    assert (code, messages, record["text"]) == (0, "", answer)
    assert record["image"] == list(map(str, images))
    code, text, messages = captured.run(folder, together=True)
    assert (code, text) == (1, "")
    assert messages.startswith("paligemma-edge: ")
    assert "b.png: not an image that can be read" in messages


def test_a_process_without_streams_can_run(
    shapes_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    given: dict[str, Any] = {"bundle": shapes_bundle, "prompt": "caption en", "max_new_tokens": 2}
    out = tmp_path / "out.jsonl"
    assert run_images(RunOptions(**given, paths=[folder], out=out)) == 1
    assert len(out.read_text().splitlines()) == 3
    with pytest.raises(OptionError, match="standard input cannot be read"):
        run_images(RunOptions(**given, paths=["-"]))
    with pytest.raises(OptionError, match="--questions -: cannot be read"):
        run_images(RunOptions(bundle=shapes_bundle, questions="-"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stream": True}, "^--stream prints the answer about one image"),
        ({"stream": True, "json": True}, "^--stream does not go with --json"),
        ({"choices": "abc"}, "^choices is 'abc', wanted a list of texts"),
        ({"out": "out.xml"}, "^--out out.xml: wanted a name that ends in"),
        ({"every": 0}, "^--every is 0"),
    ],
)
def test_a_wrong_option_is_an_error_before_the_bundle_is_opened(
    folder: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Captured(tmp_path / "no.bundle").run(folder, **given)


def test_a_journal_is_continued_with_any_list_of_the_same_choices(
    captured: Captured, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "b.png").unlink()
    out, ask = tmp_path / "out.jsonl", dict[str, Any]()
    ask |= {"prompt": "answer en day or night?", "max_new_tokens": None}
    append = Journal.append

    def once(journal: Journal, record: Any) -> None:  # noqa: ANN401
        if len(journal):
            raise KeyboardInterrupt
        append(journal, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="keeps 1 answer,"):
        patch.setattr(Journal, "append", once)
        captured.run(folder, out=out, choices=("day", "night"), **ask)
    identity = json.loads(journal_of(out).read_text().splitlines()[0])["paligemma_edge_run"]
    assert (identity["choices"], identity["paths"]) == (["day", "night"], [str(folder)])
    with pytest.raises(OptionError, match="holds answers of another run, with choices"):
        captured.run(folder, out=out, choices=["night", "day"], **ask)
    code, text, _ = captured.run(str(folder), out=out, choices=["day", "night"], **ask)
    assert (code, text) == (0, f"{out}: 2 answers\n")


def test_a_journal_whose_records_have_other_fields_is_not_continued(
    captured: Captured, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.open(out, {"variant": "an earlier build's"}) as journal:
        journal.append({"image": "a.png", "prompt": "caption en", "text": "", "score": -1.0})
    with pytest.raises(OptionError, match=r"of another run, with .*records null"):
        captured.run(folder, out=out)
