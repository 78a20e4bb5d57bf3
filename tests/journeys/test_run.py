"""Journeys of `run`: images of all kinds in, answers out, and what comes in between."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.cli.run import add_options
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.run import job as run_job
from paligemma_edge.runtime.run import video as frames
from paligemma_edge.runtime.run.journal import Journal, journal_of
from paligemma_edge.runtime.run.options import RunOptions
from tests.helpers.journey import call, refused

IMAGES = Path("samples/images")
FORMATS = (".jsonl", ".csv", ".json")
SHORT = ("--max-new-tokens", "2")
SEGMENT = "segment star ; triangle"  # the first image has stars, the second a triangle


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with shapes, and between them one that is broken."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    shutil.copy(IMAGES / "00.png", folder / "a.png")
    (folder / "b.png").write_text("no image")
    shutil.copy(IMAGES / "01.png", folder / "more" / "c.png")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def images(path: Path) -> list[str]:
    return [record["image"] for record in lines(path)]


@contextmanager
def started(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401
    """The command, while it runs; killed where the test ends first."""
    command = [sys.executable, "-m", "paligemma_edge", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Wait until so many lines were printed."""
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def test_streamed_text_is_the_answer(shapes_bundle: Path, image: Path) -> None:
    options = (shapes_bundle, "caption en", image, "--max-new-tokens", "8")
    whole = json.loads(call("run", *options, "--json").stdout)["text"]
    assert call("run", *options, "--stream").stdout == f"{whole} [cut by --max-new-tokens]\n"


def test_json_is_one_object_an_image_in_their_order(
    shapes_bundle: Path, folder: Path, shapes_model: PaliGemma
) -> None:
    done = call("run", shapes_bundle, "detect star", folder, folder / "a.png", "--json", "-q")
    first, broken, last = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (1, "")
    result = shapes_model.detect(folder / "a.png", "star")
    assert len(result) > 1
    assert first["text"] == result.text
    assert [one["xyxy"] for one in first["objects"]] == [list(one.xyxy) for one in result]
    # In a batch, sums of floats may come in another order.
    assert first["log_prob"] == pytest.approx(result.log_prob, abs=1e-3)
    assert (first["image"], first["width"], first["height"]) == (
        str(folder / "a.png"),
        result.width,
        result.height,
    )
    assert broken["image"] == str(folder / "b.png")
    assert "b.png: not an image that can be read" in broken["error"]
    assert last["image"] == str(folder / "more/c.png")


def test_several_prompts_about_each_image(shapes_bundle: Path, folder: Path) -> None:
    asked = ("caption en", "--also", "detect red circle", "--also", "answer en how many shapes?")
    done = call("run", shapes_bundle, asked[0], folder / "a.png", *asked[1:], *SHORT)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
    prompts = [line.split(":")[0] for line in lines]
    assert prompts == ["caption en", "detect red circle", "answer en how many shapes?"]
    done = call("run", shapes_bundle, asked[0], folder, *asked[1:], *SHORT, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(record["image"]).name[0] for record in records] == list("aaabbbccc")
    assert [record["prompt"] for record in records] == prompts * 3


def test_a_file_in_each_format(shapes_bundle: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in FORMATS:
        out = tmp_path / f"out{suffix}"
        done = call("run", shapes_bundle, SEGMENT, folder, "--out", out)
        assert done.returncode == 1
        assert done.stdout == f"{out}: 2 answers, 1 failed\n"
        assert "b.png" in done.stderr
        assert "Traceback" not in done.stderr
    names = [str(folder / name) for name in ("a.png", "b.png", "more/c.png")]
    assert images(tmp_path / "out.jsonl") == names
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["image"] for row in rows)) == names
    assert [bool(row["error"]) for row in rows].count(True) == 1
    coco = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "more/c.png"]
    assert coco["info"]["variant"] == "cpu-fp32"
    assert [category["name"] for category in coco["categories"]] == ["star", "triangle"]
    assert all("segmentation" in one for one in coco["annotations"])
    assert coco["annotations"]
    assert [error["file_name"] for error in coco["errors"]] == ["b.png"]
    assert {row["variant"] for row in (*rows, *lines(tmp_path / "out.jsonl"))} == {"cpu-fp32"}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", *(f"out{s}" for s in FORMATS)}


def test_a_list_on_standard_input_and_globs(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    ask = ("run", shapes_bundle, "caption en", *SHORT, "--json")
    listed = call(*ask, "-", stdin=f"{folder}/more/c.png\n\n{folder}/a.png\n{folder}/gone.png\n")
    names = [json.loads(line)["image"] for line in listed.stdout.splitlines()]
    assert names == [f"{folder}/more/c.png", f"{folder}/a.png", f"{folder}/gone.png"]
    assert "no such file" in json.loads(listed.stdout.splitlines()[-1])["error"]
    done = call(*ask, f"{folder}/**/[ac].png")
    names = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert names == [f"{folder}/a.png", f"{folder}/more/c.png"]


def test_a_run_that_waits_for_a_list_can_be_interrupted(shapes_bundle: Path, folder: Path) -> None:
    ask = ("run", shapes_bundle, "caption en", "-", *SHORT, "-q")
    with started(*ask, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(f"{folder}/a.png\n")
        process.stdin.flush()
        (line,) = read_lines(process, 1)
        assert line.startswith(f"{folder}/a.png: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        assert process.stderr.read() == "paligemma-edge: interrupted\n"


def test_drawing_writes_an_image_of_the_same_size(
    shapes_bundle: Path, image: Path, tmp_path: Path
) -> None:
    target = tmp_path / "drawn.png"
    done = call("run", shapes_bundle, "detect red circle", image, "--draw", target)
    assert done.returncode == 0, done.stderr
    with Image.open(target) as drawn, Image.open(image) as original:
        assert drawn.size == original.size


def test_drawing_a_folder(shapes_bundle: Path, folder: Path, tmp_path: Path) -> None:
    ask = ("run", shapes_bundle, SEGMENT, folder, "--draw", tmp_path / "drawn")
    done = call(*ask)
    assert done.returncode == 1
    drawn = sorted(path for path in (tmp_path / "drawn").rglob("*") if path.is_file())
    root = tmp_path / "drawn"
    assert drawn == [root / "a.png", root / "more" / "c.png"]
    for path in drawn:
        with Image.open(path) as overlay, Image.open(folder / path.relative_to(root)) as original:
            assert overlay.size == original.size
            assert np.asarray(overlay).tobytes() != np.asarray(original.convert("RGB")).tobytes()
    assert "holds files already" in refused(*ask)
    assert call(*ask, "--overwrite").returncode == 1


def test_what_is_wrong_is_reported_in_one_line(
    shapes_bundle: Path, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    ask = ("run", shapes_bundle, "caption en")
    assert "does not exist" in refused("run", tmp_path / "no.bundle", "caption en", image)
    assert "text.png" in refused(*ask, tmp_path / "text.png")
    assert "missing.png" in refused(*ask, tmp_path / "missing.png")
    assert "after its start" in refused("run", shapes_bundle, "ocr <image>", image, code=2)
    long = ("run", shapes_bundle, "word " * 999, image)
    assert "shorten the prompt" in refused(*long, code=2)
    out = ("--out", tmp_path / "out.csv")
    assert "shorten the prompt" in refused(*long, *out, code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"noise.png", "text.png"}


def test_a_wrong_option_is_wrong_usage_before_the_bundle_is_opened(
    shapes_bundle: Path, image: Path, tmp_path: Path
) -> None:
    ask = ("run", tmp_path / "no.bundle", "caption en", image)
    assert "--max-new-tokens is 0" in refused(*ask, "--max-new-tokens", "0", code=2)
    assert "--temperature" in refused(*ask, "--top-k", "3", code=2)
    assert "temperature is -1.0" in refused(*ask, "--temperature", "-1", code=2)
    assert "drawn.xyz" in refused(*ask, "--draw", tmp_path / "drawn.xyz", code=2)
    assert "out.xml" in refused(*ask, "--out", tmp_path / "out.xml", code=2)
    assert "there is no folder" in refused(*ask, "--out", tmp_path / "no" / "out.csv")
    assert "given twice" in refused(*ask, "--also", "caption en", code=2)
    assert "--every is 0.0" in refused(*ask, "--every", "0", code=2)
    assert "--every is about videos" in refused(*ask, "--every", "2", code=2)
    assert "PROMPT is missing" in refused(*ask[:2], code=2)
    assert "PATHS is missing" in refused(*ask[:3], code=2)
    assert "--images has no effect" in refused(*ask, "--images", tmp_path, code=2)
    (tmp_path / "empty").mkdir()
    assert "without images" in refused(*ask, tmp_path / "empty", code=2)
    assert "matches no image" in refused(*ask, f"{tmp_path}/*.svg", code=2)
    for pair in (
        ("--stream", "--json"),
        ("--stream", "--also", "x"),
        ("--together", "--out", "x.csv"),
        ("--choices", "a,b", "--regex", "a"),
        ("--regex", "a", "--unconstrained"),
        ("--labels", "any", "--unconstrained"),
        ("--raw", "--json"),
        ("--choices", "a,b", "--also", "detect cat"),
    ):
        assert "does not go with" in refused(*ask, *pair, code=2)
    assert "is there twice" in refused(*ask, "--choices", "a,a", code=2)
    assert "asks for nothing" in refused(*ask, "--also", "detect ;", code=2)
    assert "one image" in refused(*ask, "missing.png", "--stream", code=2)
    assert "threads is 0" in refused("run", shapes_bundle, *ask[2:], "--threads", "0", code=2)
    named = ("run", shapes_bundle, *ask[2:], "--variant", "cpu-int3")
    assert "variant is 'cpu-int3'" in refused(*named, code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"noise.png", "empty"}


def test_wrong_usage_is_reported_where_onnxruntime_is_not_installed(
    image: Path, tmp_path: Path
) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None\n"  # as if it were not there
    code += "from paligemma_edge.runtime.cli.main import main\nsys.exit(main())\n"
    ask = [sys.executable, "-c", code, "run", str(tmp_path / "no.bundle"), "caption en", str(image)]
    for more, status, message in (
        (("--stream", "--json"), 2, "--stream does not go with --json; leave one out"),
        (("--max-new-tokens", "0"), 2, "--max-new-tokens is 0"),
        (("--temperature", "-1"), 2, "temperature is -1.0"),
        (("--memory-limit", "-1"), 2, "--memory-limit is '-1', wanted a size"),
        ((), 1, "the package onnxruntime is not installed"),
    ):
        done = subprocess.run([*ask, *more], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"paligemma-edge: {message}")


def test_every_option_of_the_parser_reaches_the_run() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parsed = vars(parser.parse_args(["mix.bundle", "caption en", "photo.jpg"]))
    fields = set(RunOptions.__dataclass_fields__) - {"load"}
    assert set(parsed) == fields | set(LoadOptions.__annotations__) | {"command"}


def test_drawing_never_harms_what_is_there(
    shapes_bundle: Path, image: Path, tmp_path: Path
) -> None:
    ask = ("run", shapes_bundle, "detect red circle", image, "--max-new-tokens", "2", "--draw")
    (tmp_path / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(*ask, tmp_path / "notes.txt", code=2)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: Is a directory" in refused(*ask, tmp_path / "folder.png")
    assert "there is no folder" in refused(*ask, tmp_path / "notes.txt" / "x.png")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    before = image.read_bytes()
    assert "write over the image" in refused(*ask, image, "--overwrite")
    assert "exists already" in refused(*ask, image)
    assert "write over the image" in refused(*ask, image.parent, "--overwrite")
    assert image.read_bytes() == before


def test_one_broken_image_does_not_keep_the_others_from_an_answer(
    shapes_bundle: Path, folder: Path
) -> None:
    missing = folder / "missing.png"
    images = (folder / "a.png", missing, folder / "more" / "c.png")
    done = call("run", shapes_bundle, "caption en", *images, *SHORT, "-q")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    (line,) = done.stderr.splitlines()
    assert "missing.png" in line
    together = call("run", shapes_bundle, "caption en", *images, *SHORT, "--together", "--json")
    assert together.returncode == 1
    record = json.loads(together.stdout)
    assert record["variant"] == "cpu-fp32"
    assert record["image"] == list(map(str, images))
    assert "missing.png" in record["error"]


def test_several_images_have_one_answer_together(shapes_bundle: Path, folder: Path) -> None:
    images = (folder / "a.png", folder / "more" / "c.png")
    done = call("run", shapes_bundle, "caption en", *images, *SHORT, "--together")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{images[0]}, {images[1]}: ")
    assert line.endswith(" [cut by --max-new-tokens]")


def test_any_name_can_be_printed_anywhere(shapes_bundle: Path, image: Path, tmp_path: Path) -> None:
    name = os.fsencode(image.parent) + b"/\xe9\xff.png"
    shutil.copy(os.fsencode(image), name)
    command: list[str | bytes | Path] = [sys.executable, "-m", "paligemma_edge"]
    command += ["run", shapes_bundle]
    options: list[list[str | Path]] = [[], ["--json"], ["--draw", tmp_path / "drawn"]]
    options += [["--out", tmp_path / f"out{suffix}"] for suffix in FORMATS]
    for more in options:
        done = subprocess.run(
            [*command, "caption en", "-", image, *SHORT, *more],
            capture_output=True,
            check=False,
            input=name,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        )
        assert done.returncode == 0, done.stderr
        if "--json" in more:
            first = json.loads(done.stdout.splitlines()[0])
            assert os.fsencode(first["image"]) == name
    assert os.fsencode(images(tmp_path / "out.jsonl")[0]) == name
    coco = json.loads((tmp_path / "out.json").read_text("ascii"))
    assert os.fsencode(coco["images"][0]["file_name"]) == name
    assert r"/\udce9\udcff.png" in (tmp_path / "out.csv").read_text("utf-8")


def test_masks_that_cannot_be_decoded_are_reported_once(
    shapes_copy: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = json.loads((shapes_copy / "manifest.json").read_text())
    (variant,) = manifest["variants"].values()
    graph = variant["graphs"].pop("mask_decoder")
    for name in [name for name in manifest["files"] if name.startswith(graph)]:
        del manifest["files"][name]
        (shapes_copy / name).unlink()
    variant["files"] = [name for name in variant["files"] if not name.startswith(graph)]
    (shapes_copy / "manifest.json").write_text(json.dumps(manifest))
    target = tmp_path / "drawn"
    images = (folder / "a.png", folder / "more" / "c.png")
    done = call("run", shapes_copy, SEGMENT, *images, "--draw", target, "--json")
    assert done.returncode == 0, done.stderr
    _, note = done.stderr.splitlines()  # the first says which variant answers
    assert "--mask-decoder" in note
    for line in done.stdout.splitlines():
        record = json.loads(line)
        assert all("mask" not in one for one in record["objects"])
    assert len(list(target.rglob("*.png"))) == 2


def test_a_closed_set_of_answers(shapes_bundle: Path, folder: Path) -> None:
    ask = ("run", shapes_bundle, "answer en is there a circle?", folder, "--choices", "yes, no")
    done = call(*ask, "--json", "--also", "caption en")
    assert done.returncode == 1
    for record in map(json.loads, done.stdout.splitlines()):
        if "error" not in record:
            assert record["text"] in ("yes", "no")
            assert sum(record["probabilities"].values()) == pytest.approx(1)
            assert record["width"]
    assert "twice" in refused(*ask[:4], "--choices", "a,a", code=2)


def test_a_pattern_for_answers(shapes_bundle: Path, folder: Path) -> None:
    pytest.importorskip("llguidance")
    ask = ("run", shapes_bundle, "answer en how many?", folder / "a.png", "--regex", "[0-9]{2}")
    assert re.fullmatch("[0-9]{2}\n", call(*ask).stdout)
    assert re.fullmatch("[0-9]{2}\n", call(*ask, "--stream").stdout)
    refused(*ask[:4], "--regex", "[", code=2)


def test_without_a_grammar_any_text_is_possible(shapes_bundle: Path, folder: Path) -> None:
    ask = ("run", shapes_bundle, "detect zebra", folder / "a.png", "--json")
    free = json.loads(call(*ask, "--unconstrained").stdout)
    kept = json.loads(call(*ask, "--labels", "asked").stdout)
    assert all(one["label"] in ("zebra", "") for one in kept["objects"])
    assert free["text"] != kept["text"]


def test_a_video(shapes_bundle: Path, folder: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container, Image.open(folder / "a.png") as image:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 224, 224, "yuv420p"
        frame = image.convert("RGB").resize((224, 224))
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    drawn, out = tmp_path / "drawn", tmp_path / "out.jsonl"
    ask = ("run", shapes_bundle, "detect red circle", clip, "--every", "1")
    done = call(*ask, "--out", out, "--draw", drawn)
    assert done.returncode == 0, done.stderr
    assert images(out) == [f"{clip}@00000{second}.000s" for second in range(3)]
    assert [record["time"] for record in lines(out)] == [0.0, 1.0, 2.0]
    assert len(list(drawn.rglob("*.jpg"))) == 3
    clip.write_text("no video")
    assert "clip.mp4: cannot be read" in refused(*ask)


def test_a_camera_s_run_ends_well_when_it_is_interrupted(
    shapes_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    with Image.open(folder / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))

    def filmed(number: int, every: float) -> Iterator[frames.Frame]:
        for second in range(3):
            yield float(second), pixels
        raise KeyboardInterrupt

    monkeypatch.setattr(frames, "camera_frames", filmed)
    monkeypatch.setattr(frames, "camera_device", lambda number: tmp_path)
    out = tmp_path / "out.jsonl"
    ask = ["run", str(shapes_bundle), "caption en", "camera:0", *SHORT, "--out", str(out)]
    assert cli.main(ask) == 0
    assert images(out) == [f"camera:0@00000{second}.000s" for second in range(3)]
    assert not journal_of(out).exists()


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    """Images of one colour each, cheap to make and to read."""
    folder = tmp_path / "thousand"
    folder.mkdir()
    for number in range(1000):
        colour = (number % 256, 50 * (number // 256), 100)
        Image.new("RGB", (16, 16), colour).save(folder / f"{number:03}.bmp")
    (folder / "500.bmp").write_bytes(b"BM")
    return folder


def test_a_thousand_images_killed_twice_end_complete_and_without_a_duplicate(
    shapes_bundle: Path, thousand: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    ask = ("run", shapes_bundle, "caption en", thousand, *SHORT, "--out", out, "--json")
    shown: list[str] = []
    for _ in range(2):
        with started(*ask) as process:
            shown += read_lines(process, 150)
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
            assert process.stdout is not None
            # What was printed before it was killed; the last line may be cut.
            shown += [line for line in process.stdout.read().splitlines(True) if line[-1] == "\n"]
        assert journal_of(out).exists()
        assert not out.exists()
    done = call(*ask)
    assert done.returncode == 1  # of the one that is broken
    shown += done.stdout.splitlines()
    names = [str(path) for path in sorted(thousand.iterdir())]
    assert images(out) == names
    assert [bool("error" in record) for record in lines(out)].count(True) == 1
    answers = [record for record in map(json.loads, shown) if "error" not in record]
    again = [record["image"] for record in answers]
    assert len(again) == len(set(again))  # none was answered twice
    assert not journal_of(out).exists()
    assert "exists already" in refused(*ask)
    assert images(out) == names


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_answers_and_goes_on(
    shapes_bundle: Path, thousand: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    out = tmp_path / "out.jsonl"
    names = [str(path) for path in sorted(thousand.iterdir())[:60]]
    ask = (
        "run",
        shapes_bundle,
        "caption en",
        "-",
        *SHORT,
        "--out",
        out,
        "--json",
        "--max-batch-size",
        "1",
    )
    with started(*ask, stdin=subprocess.PIPE, preexec_fn=hears_interrupts) as process:
        assert process.stdin is not None
        process.stdin.writelines(f"{name}\n" for name in names[:20])
        process.stdin.flush()
        read_lines(process, 20)  # now it waits for more
        assert "another run is writing" in refused(*ask)
        process.send_signal(sign)
        assert process.wait(60) == 128 + sign  # as a shell says it
        assert process.stderr is not None
        assert process.stderr.read().endswith(
            f"paligemma-edge: interrupted; {journal_of(out)} keeps 20 answers, "
            "and the same command goes on\n"
        )
    other = refused(*ask[:2], "caption de", *ask[3:], code=2)
    assert 'prompts ["caption en"]' in other
    other = refused(*ask[:4], "x.png", *ask[4:], "--draw", tmp_path / "drawn", code=2)
    assert 'with paths ["-"], draw null, now paths ["-", ' in other
    done = call(*ask, stdin="\n".join(names[10:]))  # a list may be shorter this time
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == names[20:]
    assert images(out) == [*names[10:], *names[:10]]


def hears_interrupts() -> None:
    """A parent that runs us in the background has SIGINT ignored, and a child keeps that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_is_there_is_written_over_only_when_requested(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    ask = ("run", shapes_bundle, "caption en", folder / "a.png", *SHORT, "--out", out)
    assert "out.csv exists already" in refused(*ask)
    assert out.read_text() == "mine"
    assert call(*ask, "--overwrite").returncode == 0
    assert out.read_text().startswith("image,prompt,")


def test_a_run_whose_answers_are_all_there_is_finished_without_the_model(
    shapes_copy: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    shutil.copy(folder / "a.png", folder / "b.png")
    ask = ("run", shapes_copy, "caption en", folder, *SHORT, "--out", out)
    assert call(*ask).returncode == 0
    whole = out.read_bytes()
    # As if the machine had failed before the file took its name.
    code = (
        "import sys\n"
        "from paligemma_edge.runtime.run import job as run_command\n"
        "from paligemma_edge.runtime.cli.main import main\n"
        "keep = run_command.finish\n"
        "def stop(*arguments): raise KeyboardInterrupt\n"
        "run_command.finish = stop\n"
        "assert main(sys.argv[1:]) == 130\n"
        "run_command.finish = keep\n"
        "run_command.open_model = None\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out.unlink()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, ask)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "keeps 3 answers" in done.stderr
    assert out.read_bytes() == whole


def test_one_image_that_cannot_be_drawn_ends_no_run(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    Image.new("L", (16_400, 600)).save(folder / "b.webp.png")
    (folder / "b.webp.png").rename(folder / "b.webp")
    out = tmp_path / "out.jsonl"
    ask = ("run", shapes_bundle, "detect star", folder, "--out", out, "--draw", tmp_path / "drawn")
    done = call(*ask)
    assert (done.returncode, done.stdout) == (1, f"{out}: 2 answers, 2 failed\n"), done.stderr
    broken = [Path(record["image"]).name for record in lines(out) if "error" in record]
    assert broken == ["b.png", "b.webp"]
    assert "too large for WEBP" in done.stderr


def test_what_failed_is_answered_again_and_what_vanished_is_left_out(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    (folder / "d.png").write_text("no image")
    ask = ("run", shapes_bundle, "caption en", folder, *SHORT, "--out", out)
    command = "from paligemma_edge.runtime.run import job as c; import sys\n"
    command += "from paligemma_edge.runtime.cli.main import main\n"
    command += "def stop(*_): raise KeyboardInterrupt\n"
    command += "c.finish = stop\nsys.exit(main(sys.argv[1:]))\n"
    stopped = [sys.executable, "-c", command, *map(str, ask)]
    assert subprocess.run(stopped, check=False, capture_output=True).returncode == 130
    shutil.copy(folder / "a.png", folder / "b.png")
    (folder / "a.png").unlink()
    (folder / "d.png").unlink()
    done = call(*ask)
    assert (done.returncode, done.stdout) == (0, f"{out}: 2 answers\n"), done.stderr
    assert images(out) == [str(folder / "b.png"), str(folder / "more" / "c.png")]


@pytest.mark.parametrize("more", [(), ("--json",), ("--stream",), ("--help",)])
def test_output_that_cannot_be_written_is_reported_in_one_line(
    shapes_bundle: Path, image: Path, more: tuple[str, ...]
) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "paligemma_edge", "run", str(shapes_bundle)]
    command += ["caption en", str(image), *SHORT, "-q", *more]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=buffered, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        3,
        "paligemma-edge: cannot write standard output: No space left on device; free some space\n",
    )


def test_a_list_with_no_end_is_not_read_to_it(shapes_bundle: Path, image: Path) -> None:
    ask = ("run", shapes_bundle, "caption en", "-", "--together")
    with started(*ask, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.writelines(f"{number}.png\n" for number in range(3000))
        process.stdin.flush()  # and more to come
        assert process.wait(60) == 2
        assert process.stderr is not None
        assert "images" in process.stderr.read()


def test_objects_are_printed_for_people(shapes_bundle: Path, folder: Path) -> None:
    one = call("run", shapes_bundle, "detect star", folder / "a.png")
    assert one.returncode == 0, one.stderr
    line = re.compile(r"[a-z ]+ [01]\.[0-9]{2} \[\d+, \d+, \d+, \d+\]")
    assert all(map(line.fullmatch, one.stdout.splitlines()))
    many = call("run", shapes_bundle, "detect star", folder / "a.png", folder / "more" / "c.png")
    shown = many.stdout.splitlines()
    assert shown[: 1 + len(one.stdout.splitlines())] == [
        f"{folder}/a.png:",
        *(f"  {text}" for text in one.stdout.splitlines()),
    ]
    assert f"{folder}/more/c.png:" in shown
    raw = call("run", shapes_bundle, "detect star", folder / "a.png", "--raw").stdout
    assert re.match("<loc[0-9]{4}>", raw)


def test_objects_of_too_little_confidence_are_in_no_output(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    ask = ("run", shapes_bundle, "detect star", folder / "a.png")
    sure = [one["confidence"] for one in json.loads(call(*ask, "--json").stdout)["objects"]]
    least = (max(sure) + min(sure)) / 2
    kept = [value for value in sure if value >= least]
    assert 0 < len(kept) < len(sure)
    more = ("--min-confidence", str(least))
    assert len(call(*ask, *more).stdout.splitlines()) == len(kept)
    record = json.loads(call(*ask, *more, "--json").stdout)
    assert [one["confidence"] for one in record["objects"]] == pytest.approx(kept)
    out = tmp_path / "out.json"
    assert call(*ask, *more, "--out", out).returncode == 0
    assert len(json.loads(out.read_text())["annotations"]) == len(kept)
    assert call(*ask, "--min-confidence", "1").stdout == "nothing found\n"


def test_labels_parted_by_commas_get_a_hint(shapes_bundle: Path, folder: Path) -> None:
    ask = ("run", shapes_bundle, "detect star, heart", folder / "a.png", *SHORT)
    assert "write 'detect star ; heart'" in call(*ask).stderr
    assert call(*ask, "-q").stderr == ""


def test_a_file_of_questions(shapes_bundle: Path, folder: Path, tmp_path: Path) -> None:
    asked = [
        {"image": "a.png", "prefix": "caption en", "suffix": "a star"},
        {"image": "b.png", "prefix": "caption en"},
        {"image": "more/c.png", "prompt": "detect star"},
        {"image": "a.png", "prefix": "detect ;"},
        {"image": "a.png", "prefix": "detect star"},
    ]
    file, out = tmp_path / "questions.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in asked) + "no json\n")
    ask = ("run", shapes_bundle, "--questions", file, "--images", folder)
    done = call(*ask, "--out", out, "--draw", tmp_path / "drawn")
    assert (done.returncode, done.stdout) == (1, f"{out}: 3 answers, 3 failed\n"), done.stderr
    records = lines(out)
    prompts = [(one.get("prefix") or one.get("prompt")) for one in asked]
    assert [record["prompt"] for record in records] == [*prompts, ""]
    names = [*(one["image"] for one in asked), f"{file}:6"]
    assert [record["image"] for record in records] == names
    assert ["error" in record for record in records] == [False, True, False, True, False, True]
    assert "asks for nothing" in records[3]["error"]
    assert "not JSON" in records[5]["error"]
    assert (tmp_path / "drawn" / "more" / "c.png").exists()
    listed = call(*ask[:2], "--questions", "-", "--images", folder, stdin=json.dumps(asked[0]))
    assert listed.stdout == f"{records[0]['text']}\n"


def test_a_run_of_questions_goes_on_where_it_was_killed(
    shapes_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = folder / "questions.jsonl", tmp_path / "out.jsonl"
    prompts = [f"answer en is it {colour}?" for colour in ("red", "green", "blue", "black")]
    asked = [{"image": "a.png", "prefix": prompt} for prompt in prompts]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    ask = ["run", str(shapes_bundle), "--questions", str(file), "--out", str(out)]
    append = Journal.append

    def twice(journal: Journal, record: Any) -> None:  # noqa: ANN401
        if len(journal) == 2:
            raise KeyboardInterrupt
        append(journal, record)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", twice)
        assert cli.main([*ask, "--max-batch-size", "1"]) == 130
    assert "--max-batch-size" not in journal_of(out).read_text()
    assert cli.main([*ask, "--max-batch-size", "1"]) == 0
    assert [record["prompt"] for record in lines(out)] == prompts
    assert not journal_of(out).exists()


def test_supervision_finds_the_images_of_a_coco_file(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    (folder / "b.png").unlink()
    out = tmp_path / "out.json"
    assert call("run", shapes_bundle, SEGMENT, folder, "--out", out).returncode == 0
    read = supervision.DetectionDataset.from_coco(
        images_directory_path=str(folder), annotations_path=str(out)
    )
    assert read.classes == ["star", "triangle"]
    shown = {Path(path).relative_to(folder).as_posix(): found for path, _, found in read}
    assert set(shown) == {"a.png", "more/c.png"}
    assert all(len(found) for found in shown.values())
    assert all(found.mask is not None for found in shown.values())


def test_answers_are_written_to_a_stream_as_to_a_file(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    ask = ("run", shapes_bundle, "caption en", folder, *SHORT, "--out")
    call(*ask, tmp_path / "out.jsonl")
    call(*ask, tmp_path / "out.csv")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with started(*ask, pipe, "--overwrite") as process:
        assert pipe.read_text() == (tmp_path / "out.csv").read_text()
        assert process.wait(60) == 1  # of the image that is broken
    (tmp_path / "link.csv").symlink_to("/dev/stdout")
    for name, whole in (("/dev/stdout", "out.jsonl"), (tmp_path / "link.csv", "out.csv")):
        done = call(*ask, name)
        assert done.stdout.splitlines() == (tmp_path / whole).read_text().splitlines()
        assert done.stderr.endswith(f"paligemma-edge: {name}: 2 answers, 1 failed\n")
    assert call(*ask, "/dev/null").stdout == ""
    left = {"photos", "out.jsonl", "out.csv", "pipe.csv", "link.csv"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_drawing_is_written_to_a_stream(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    ask = [sys.executable, "-m", "paligemma_edge", "run", str(shapes_bundle), "detect star"]
    ask += [str(folder / "a.png"), "-q", "--draw"]
    done = subprocess.run([*ask, "/dev/stdout"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert subprocess.run([*ask, str(tmp_path / "x.png")], check=False).returncode == 0
    assert done.stdout == (tmp_path / "x.png").read_bytes()
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    os.mkfifo(drawn / "a.png")
    done = subprocess.run([*ask, str(drawn), "--overwrite"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"a.png is a pipe, wanted a file, and is kept" in done.stderr
    assert [path.name for path in drawn.iterdir()] == ["a.png"]
    assert (drawn / "a.png").is_fifo()


def test_a_disk_without_room_for_a_byte_keeps_no_empty_file(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    ask = ("run", shapes_bundle, "caption en", folder / "a.png", *SHORT, "-q")
    with started(*ask, "--out", tmp_path / "out.jsonl", preexec_fn=no_room) as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "cannot write" in process.stderr.read()
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_no_single_video_ends_a_run_and_no_title_is_in_the_way(
    shapes_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    av = pytest.importorskip("av")
    clip = tmp_path / "clip.avi"
    with av.open(str(clip), "w") as container:
        container.metadata["title"] = "caf@ au lait"
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    latin = clip.read_bytes().replace(b"caf@", b"caf\xe9")  # not UTF-8
    assert latin != clip.read_bytes()
    clip.write_bytes(latin)
    out = tmp_path / "out.jsonl"
    done = call(
        *("run", shapes_bundle, "caption en", clip, folder / "a.png", *SHORT, "-q", "--out", out)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert images(out) == [f"{clip}@000000.000s", str(folder / "a.png")]


def test_a_damaged_journal_is_mended_and_kept(
    shapes_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "b.png").unlink()
    out = tmp_path / "out.jsonl"
    ask = ["run", str(shapes_bundle), "caption en", str(folder), *SHORT, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(run_job, "finish", interrupt)
        assert cli.main(ask) == 130
    wrong = b'{"image":"x.png","prompt":"caption en","text":3,"objects":[{"xyxy":null}]}\n'
    damaged = journal_of(out).read_bytes() + b"\xff\0" + b"[" * 99_999 + b"\n" + wrong
    journal_of(out).write_bytes(damaged)
    done = call(*ask)
    assert (done.returncode, done.stdout) == (0, f"{out}: 2 answers\n")
    assert done.stderr.count("was damaged in 2 of its lines") == 1
    assert (tmp_path / "out.jsonl.partial.damaged").read_bytes() == damaged
    assert images(out) == [str(folder / "a.png"), str(folder / "more" / "c.png")]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_no_name_forges_a_line(shapes_bundle: Path, folder: Path) -> None:
    name = "x\npaligemma-edge: passed\r\x1b[2J\u202e\x9b\udce9.png"
    forged = folder / name
    shutil.copy(folder / "a.png", forged)
    shown = os.fsdecode(forged).encode("unicode_escape").decode()
    for more in ((), ("--together",), ("--also", "ocr")):
        done = call(
            "run", shapes_bundle, "caption en", folder / "a.png", forged, *SHORT, "-q", *more
        )
        assert done.returncode == 0, done.stderr
        assert all(line.isprintable() for line in done.stdout.split("\n"))
        assert shown in done.stdout
        assert not any(line.startswith("paligemma-edge") for line in done.stdout.splitlines())
    done = call("run", shapes_bundle, "caption en", f"{forged}{'y' * 100_000}", "-q")
    (line,) = done.stderr.splitlines()
    assert line.isprintable()
    assert len(line) < 700
