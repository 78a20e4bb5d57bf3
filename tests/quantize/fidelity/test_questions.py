"""The questions of a folder: what is read, what is skipped and reported, and what is refused."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma_edge.quantize.fidelity.questions import (
    DEFAULT_PROMPTS,
    GroundTruth,
    Question,
    parse_prompts,
    read_masks,
    read_questions,
    sample_questions,
)
from paligemma_edge.runtime.errors import ImageError, OptionError


def write_image(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    Image.new(mode, size).save(path)
    return path


def write_prompts(folder: Path, **entry: object) -> None:
    questions = [{"prompt": "detect cat", "objects": [{"label": "cat", "box": [0, 1, 2, 3.5]}]}]
    whole = {"image": "a.png", "questions": questions, **entry}
    (folder / "prompts.json").write_text(json.dumps([whole]))


def test_the_samples_are_installed_with_their_truth() -> None:
    questions = sample_questions()
    assert len({q.image for q in questions}) == 12
    tasks = Counter(q.task for q in questions)
    assert set(tasks) == {"caption", "answer", "detect", "segment", "ocr"}
    for question in questions:
        assert (question.text is None) != (question.objects is None)
        for truth in question.objects or ():
            assert question.masks is not None
            assert truth.mask is not None
            with Image.open(question.image) as image:
                inside = np.argwhere(read_masks(question.masks, image.size) == truth.mask)
            y0, x0, y1, x1 = truth.box
            assert ((inside >= (y0, x0)) & (inside < (y1, x1))).all()
            assert len(inside) > 9


def test_a_folder_says_what_is_asked_and_true(tmp_path: Path) -> None:
    image, masks = write_image(tmp_path / "a.png"), write_image(tmp_path / "m.png", mode="L")
    prompts = [
        {"prompt": "answer en why?", "text": "because", "source": "a field of its own"},
        {"prompt": "find", "task": "segment", "objects": [{"label": "x", "box": [0, 1, 2, 3]}]},
        {"prompt": "detect", "objects": []},
    ]
    write_prompts(tmp_path, questions=prompts, masks="m.png")
    assert read_questions(tmp_path) == [
        Question(image=image, prompt="answer en why?", task="answer", text="because", masks=masks),
        Question(
            image=image,
            prompt="find",
            task="segment",
            objects=(GroundTruth("x", (0.0, 1.0, 2.0, 3.0)),),
            masks=masks,
        ),
        Question(image=image, prompt="detect", task="detect", objects=(), masks=masks),
    ]


def test_images_alone_take_the_prompts_that_are_given(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "c.webp", "d.bmp"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    skipped: list[str] = []
    questions = read_questions(tmp_path, prompts=iter(["one", "two x"]), note=skipped.append)
    assert [(q.image.name, q.prompt, q.task) for q in questions] == [
        (name, prompt, task)
        for name in ("a.png", "b.jpg", "c.webp", "d.bmp")
        for prompt, task in (("one", "one"), ("two x", "two"))
    ]
    assert len(skipped) == 2
    assert "cut.png" in skipped[0]
    assert "notes.txt" in skipped[1]
    assert len(read_questions(tmp_path)) == 4 * len(DEFAULT_PROMPTS)


def test_a_folder_without_an_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for folder, words in (
        (tmp_path, "holds no readable image, wanted"),
        (tmp_path / "nowhere", "does not exist, wanted"),
        (tmp_path / "notes.txt", "is not a folder, wanted"),
    ):
        with pytest.raises(OptionError, match=words) as caught:
            read_questions(folder)
        assert "\n" not in str(caught.value)


def test_an_image_that_is_asked_about_must_be_there(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        read_questions(tmp_path)
    assert len(parse_prompts(tmp_path)) == 1


@pytest.mark.parametrize(
    ("size", "mode", "message"),
    [((5, 4), "L", "5 x 4 pixels .* 6 x 4"), ((6, 4), "RGB", "mode RGB"), (None, "", "cannot be")],
)
def test_masks_fit_their_image(
    size: tuple[int, int] | None, mode: str, message: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.png")
    write_prompts(tmp_path, masks="m.png")
    if size is not None:
        write_image(tmp_path / "m.png", size, mode)
    with pytest.raises(ImageError, match=message) as caught:
        read_questions(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_values_of_masks_are_read_as_they_are(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for mode in ("L", "P"):
        image = Image.fromarray(values)
        if mode == "P":
            image = Image.frombytes("P", (6, 4), values.tobytes())
            image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(tmp_path / "m.png")
        assert np.array_equal(read_masks(tmp_path / "m.png", (6, 4)), values)


@pytest.mark.parametrize(
    "change",
    [
        {"image": 1},
        {"questions": []},
        {"questions": [{}]},
        {"questions": [{"prompt": 1}]},
        {"questions": [{"prompt": "x", "text": 1}]},
        {"questions": [{"prompt": "x", "objects": [{"label": "x"}]}]},
        {"questions": [{"prompt": "x", "objects": [{"label": "x", "box": [1, 2, 3]}]}]},
        {"questions": [{"prompt": "x", "objects": [{"label": "x", "box": [1, 2, 3, "4"]}]}]},
        {"masks": 1},
    ],
)
def test_prompts_of_another_form_are_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_prompts(tmp_path)
    assert read_questions(tmp_path)
    write_prompts(tmp_path, **change)
    with pytest.raises(OptionError, match=r"prompts\.json.*wanted") as caught:
        read_questions(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts.json")
    wanted = r"is a named pipe, not a regular file; put the file itself in its place"
    with pytest.raises(OptionError, match=rf"prompts\.json {wanted}"):
        parse_prompts(tmp_path)
    os.mkfifo(tmp_path / "masks.png")
    with pytest.raises(ImageError, match=rf"masks\.png: {wanted}"):
        read_masks(tmp_path / "masks.png", (6, 4))
