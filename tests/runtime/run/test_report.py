from __future__ import annotations

import io
import json
from typing import Any

import pytest

from paligemma_edge.runtime.errors import ImageError, PromptError
from paligemma_edge.runtime.results.generation import FinishReason
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.run.progress import RunProgress
from paligemma_edge.runtime.run.queries import Failure, QueryResult, Result
from paligemma_edge.runtime.run.report import Report
from paligemma_edge.runtime.run.sources import Source
from paligemma_edge.runtime.system.console import Console
from tests.helpers.detections import detection, result

NOTE = "there is no mask decoder"


def answered(number: int, outcome: Result | Failure, siblings: int = 1) -> QueryResult:
    source = Source(f"{number // siblings}.png", "")
    return QueryResult(number, source, "caption en", siblings, outcome, (30, 20))


def words(text: str, finish_reason: FinishReason = "stop") -> TextResult:
    return TextResult(prompt="caption en", text=text, log_prob=-1.0, finish_reason=finish_reason)


def noted() -> ObjectResult:
    return ObjectResult(
        prompt="segment cat",
        text="",
        objects=(),
        classes=("cat",),
        log_prob=-1.0,
        finish_reason="stop",
        width=30,
        height=20,
        notes=(NOTE,),
    )


def test_text_comes_in_order_and_says_what_was_cut(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("text", names=True, prompts=False, progress=None)
    report(answered(1, words("b", "length")))
    assert capsys.readouterr().out == ""
    report(answered(0, words("a")))
    assert capsys.readouterr().out == "0.png: a\n1.png: b [cut by --max-new-tokens]\n"
    choice = ChoiceResult(prompt="x", text="yes", log_probs={"yes": -0.5, "no": -1.0})
    report(answered(2, choice))
    report.close()
    assert capsys.readouterr() == ("2.png: yes (62 %)\n", "")
    assert report.failures == 0


def test_one_image_is_not_named_but_prompts_are_where_there_are_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Report("text", names=False, prompts=False, progress=None)(answered(0, words("a")))
    Report("text", names=False, prompts=True, progress=None)(answered(0, words("a")))
    Report("text", names=True, prompts=True, progress=None)(answered(0, words("a")))
    assert capsys.readouterr().out == "a\ncaption en: a\n0.png: caption en: a\n"


def test_a_failure_is_in_its_line_or_reported(capsys: pytest.CaptureFixture[str]) -> None:
    broken = answered(0, ImageError("0.png: damaged"))
    for style in ("text", "none"):
        report = Report("text" if style == "text" else "none", True, False, None)
        report(broken)
        assert capsys.readouterr() == ("", "paligemma-edge: 0.png: damaged\n")
        assert report.failures == 1
    Report("json", names=True, prompts=False, progress=None)(broken)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"] == "0.png: damaged"
    assert shown.err == ""


def test_a_note_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("none", names=True, prompts=False, progress=None)
    for number in range(3):
        report(answered(number, noted()))
    assert capsys.readouterr() == ("", f"paligemma-edge: {NOTE}\n")


def test_images_are_counted_when_their_last_prompt_is_answered() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = RunProgress(stream, 3, clock=lambda: now[0])
    report = Report("none", names=True, prompts=True, progress=progress)
    for number in (0, 2, 3, 1, 4):
        now[0] += 1
        report(answered(number, words("a"), siblings=2))
    report.close()
    assert stream.getvalue().startswith("2/3, ")


def test_what_still_waits_is_printed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("text", names=True, prompts=False, progress=None)
    report(answered(2, words("c")))
    report(answered(1, words("b")))
    report.close()
    assert capsys.readouterr().out == "1.png: b\n2.png: c\n"


def test_no_name_and_no_answer_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("text", names=False, prompts=False, progress=None)
    report(answered(0, words("a\x1b[31m\r\tb\x9bc\nd é")))
    report(answered(1, ImageError("\x1b]0;x\x07.png: damaged")))
    shown = capsys.readouterr()
    assert shown.out == "a\\x1b[31m\\r\\tb\\x9bc\nd é\n"
    assert shown.err == "paligemma-edge: \\x1b]0;x\\x07.png: damaged\n"


def shown(outcome: ObjectResult, **style: Any) -> str:  # noqa: ANN401
    console = Console(io.StringIO(), io.StringIO())
    given: dict[str, Any] = {"names": False, "prompts": False, "progress": None, **style}
    Report("text", console=console, **given)(answered(0, outcome))
    assert isinstance(console.out, io.StringIO)
    return console.out.getvalue()


def test_an_object_is_a_line_below_its_image_where_there_are_several() -> None:
    found = result([detection("cat", log_prob=-0.25), detection("", log_prob=-2.0)])
    lines = ["cat 0.78 [6, 10, 36, 30]", "0.14 [6, 10, 36, 30]"]
    assert shown(found).splitlines() == lines
    assert shown(found, names=True).splitlines() == ["0.png:", *(f"  {line}" for line in lines)]
    named = shown(found, names=True, prompts=True)
    assert named.startswith("0.png: caption en:\n  cat 0.78 ")


def test_the_model_s_own_text_is_printed_where_it_is_asked_for() -> None:
    found = result([detection("cat")], text="<loc0256> cat")
    assert shown(found, raw=True) == "<loc0256> cat\n"
    assert shown(found, raw=True, names=True) == "0.png: <loc0256> cat\n"


def test_an_answer_without_objects_says_so_or_what_it_says() -> None:
    assert shown(result(text="")) == "nothing found\n"
    assert shown(result(text="<loc0256><loc0001><loc0002><loc0003> cat")) == "nothing found\n"
    assert shown(result(text="there is no cat")) == "there is no cat\n"


def test_a_cut_answer_with_objects_says_so() -> None:
    cut = result([detection("cat")], finish_reason="length")
    assert shown(cut).splitlines()[1:] == ["[cut by --max-new-tokens]"]


def test_a_quiet_console_has_errors_and_no_notes() -> None:
    console = Console(io.StringIO(), io.StringIO(), quiet=True)
    report = Report("none", names=True, prompts=False, progress=None, console=console)
    report(answered(0, noted()))
    report(answered(1, PromptError("the prompt is empty")))
    assert isinstance(console.err, io.StringIO)
    assert console.err.getvalue() == "paligemma-edge: the prompt is empty\n"
    assert report.failures == 1
