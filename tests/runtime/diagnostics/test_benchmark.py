"""What `bench` measures, and what it refuses to."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.cli.commands import command_parser
from paligemma_edge.runtime.diagnostics import measure
from paligemma_edge.runtime.diagnostics.benchmark import Benchmark, benchmark
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.logits import HostRow, Logits
from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError

END = 1
STAGES = ("preprocess", "vision", "projector", "prefill")


@pytest.fixture(scope="module")
def measured(shapes_bundle: Path) -> Benchmark:
    return benchmark(shapes_bundle, "cpu", threads=1, steps=3, runs=4, batch_sizes=(2, 1, 3, 1))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    assert cli.main(["bench", *arguments]) == code
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    return line


def test_it_says_what_was_measured_and_where(measured: Benchmark, shapes_bundle: Path) -> None:
    assert (measured.bundle, measured.variant) == (str(shapes_bundle), "cpu-fp32")
    assert (measured.device, measured.threads, measured.image) == ("cpu", 1, "drawn")
    assert (measured.image_tokens, measured.prompt_tokens) == (64, 8)
    assert measured.processor
    assert measured.onnxruntime


def test_every_stage_and_every_batch_has_its_time(measured: Benchmark) -> None:
    assert tuple(measured.reading) == (*STAGES, "first_token")
    assert [step.batch_size for step in measured.stepping] == [2, 1, 3]
    timings = [*measured.reading.values(), *(step.seconds for step in measured.stepping)]
    assert all(len(timing.each) == 4 for timing in timings)
    assert min(min(timing.each) for timing in timings) > 0
    assert measured.load > 0


def test_the_first_token_takes_the_stages_before_it(measured: Benchmark) -> None:
    stages = zip(*(measured.reading[stage].each for stage in STAGES), strict=True)
    assert measured.reading["first_token"].each == pytest.approx([sum(run) for run in stages])


def test_tokens_per_second_are_those_of_the_whole_batch(measured: Benchmark) -> None:
    for step in measured.stepping:
        assert step.tokens_per_second * step.seconds.median == pytest.approx(step.batch_size)


def test_the_memory_of_this_process_is_reported(measured: Benchmark) -> None:
    memory = measured.memory
    assert 0 < memory["anonymous"] <= memory["resident"] <= memory["peak"]


def test_no_token_ends_a_run(shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[list[int]] = []
    step = Stepper.step

    def watched(self: Stepper, tokens: list[int]) -> Logits:
        fed.append(tokens)
        return step(self, tokens)

    monkeypatch.setattr(Stepper, "step", watched)
    monkeypatch.setattr(HostRow, "best", property(lambda _: END))
    measured = benchmark(shapes_bundle, "cpu", steps=5, runs=2, batch_sizes=[2])
    assert fed == [[END, END]] * 5 * 3
    assert len(measured.stepping[0].seconds.each) == 2


def test_a_step_includes_the_choice_of_its_tokens(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def choose(_: object) -> int:
        now[0] += 1
        return 7

    monkeypatch.setattr(HostRow, "best", property(choose))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    measured = benchmark(shapes_bundle, "cpu", steps=5, runs=2, batch_sizes=[1, 3])
    assert [step.seconds.each for step in measured.stepping] == [(1.0, 1.0), (3.0, 3.0)]


def test_a_batch_steps_as_its_slots_would_alone(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run starts anew from the prompt: the same tokens in each slot of each run."""
    fed: list[list[int]] = []
    step = Stepper.step

    def watched(self: Stepper, tokens: list[int]) -> Logits:
        fed.append(tokens)
        return step(self, tokens)

    monkeypatch.setattr(Stepper, "step", watched)
    benchmark(shapes_bundle, "cpu", steps=4, runs=1, batch_sizes=[1, 2])
    alone, together = fed[:8], fed[8:]
    assert alone[:4] == alone[4:]
    assert together == [tokens * 2 for tokens in alone]


def test_the_command_prints_a_table_and_json_last(
    shapes_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), (90, 90, 90)).save(image)
    options = ("--image", str(image), "--prompt", "caption en", "--threads", "1")
    few = ("--steps", "2", "--runs", "1", "--max-batch-size", "1,4")
    assert cli.main(["bench", str(shapes_bundle), *options, *few]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["image"], found["prompt"], found["prompt_tokens"]) == (
        str(image),
        "caption en",
        4,
    )
    assert (found["threads"], found["steps"], found["runs"]) == (1, 2, 1)
    assert found["import"] >= 0
    assert found["load"] > 0
    assert [step["batch_size"] for step in found["stepping"]] == [1, 4]
    rows = {line[:16].strip(): line[16:].split() for line in table}
    for stage, timings in found["reading"].items():
        assert float(rows[stage.replace("_", " ")][0]) == pytest.approx(
            timings["median"] * 1e3, abs=0.06
        )
    assert len(rows["step, batch 4"]) == 4  # three times and the tokens in a second
    assert float(rows["peak"][0]) == pytest.approx(found["memory"]["peak"] / 1e6, abs=0.06)
    assert found["processor"] in "\n".join(table)


def test_the_command_says_the_defaults_of_the_library() -> None:
    parser = command_parser("bench")
    texts = {action.dest: action.help or "" for action in parser._actions}
    for name, parameter in inspect.signature(benchmark).parameters.items():
        if name in ("prompt", "steps", "runs"):
            assert texts[name].endswith(f"default: {parameter.default}"), name
    assert vars(parser.parse(["mix.bundle"]))["batch_sizes"] == "1"


def test_stages_are_reported(shapes_bundle: Path) -> None:
    stages: list[str] = []
    benchmark(shapes_bundle, "cpu", steps=1, runs=1, progress=lambda *s: stages.append(s[0]))
    first_token = "measuring the way to the first token"
    assert stages == ["opening the bundle", first_token, "measuring steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runs", "0"), "runs is 0"),
        (("--steps", "-1"), "steps is -1"),
        (("--max-batch-size", "1,x"), "--max-batch-size is '1,x'"),
        (("--max-batch-size", "2,0"), "batch size is 0"),
        (("--steps", "441"), "the model holds 512 in all"),
        (("--variant", "cpu-int1"), "variant is 'cpu-int1'"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: tuple[str, ...],
    message: str,
    shapes_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, str(shapes_bundle), "-q", *options, code=2)


def test_the_longest_answer_fits(shapes_bundle: Path) -> None:
    measured = benchmark(shapes_bundle, "cpu", steps=440, runs=1)
    assert 64 + measured.prompt_tokens + measured.steps == 512


def test_an_image_that_cannot_be_read_is_reported_before_the_bundle_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "text.png"
    image.write_text("no image")
    line = refused(capsys, str(tmp_path / "no.bundle"), "--image", str(image), code=1)
    assert f"{image}: not an image" in line
    with pytest.raises(ImageError, match="no such file"):
        benchmark(tmp_path, image=tmp_path / "absent.png")


def test_what_cannot_be_answered_is_refused(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PromptError, match="after its start"):
        benchmark(shapes_bundle, "cpu", prompt="cap <image>")
    with pytest.raises(OptionError, match="batch_sizes is empty"):
        benchmark(shapes_bundle, "cpu", batch_sizes=())
    monkeypatch.setattr(measure, "available_memory", lambda: 1000)
    with pytest.raises(OptionError, match=r"batch 4 needs 0\.0 GB of keys and values"):
        benchmark(shapes_bundle, "cpu", runs=1, steps=1, batch_sizes=[1, 4])
