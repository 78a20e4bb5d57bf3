from __future__ import annotations

from pathlib import Path

import pytest

from paligemma_edge.runtime.run.hints import left_out_hint, prompt_hints, task_hint


def test_labels_that_commas_part_are_hinted_at_once_each() -> None:
    (hint,) = prompt_hints(["detect star, heart"])
    assert hint == (
        "'detect star, heart' asks for one thing of that name; "
        "for 2 things write 'detect star ; heart'"
    )
    (hint,) = prompt_hints(["caption en", "Segment a,b , c"])
    assert hint.endswith("for 3 things write 'Segment a ; b ; c'")


def test_other_prompts_are_not() -> None:
    prompts = ["detect star ; heart", "detect a, b ; c", "answer en a, b?", "detect ,", "detect a,"]
    assert not list(prompt_hints(prompts))


def test_what_a_folder_leaves_out_is_named_by_kind_the_most_frequent_first() -> None:
    assert not list(left_out_hint({}))
    (hint,) = left_out_hint({".heic": 2, "": 1, ".txt": 1200})
    assert hint == (
        "left out of folders and globs, no images by their names: "
        "1,200 .txt, 2 .heic, 1 without an ending"
    )
    (hint,) = left_out_hint({f".{n}": 1 for n in range(20)} | {".\x1b[2J": 99})
    assert "99 .\\x1b[2J, 1 .0" in hint
    assert hint.endswith("13 others")


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [("detet star", "detect"), ("Segmnet cat", "segment"), ("captoin en", "caption")],
)
def test_a_task_that_is_nearly_written_is_hinted(prompt: str, meant: str) -> None:
    (hint,) = task_hint([prompt])
    assert hint == f"{prompt!r} is asked as it stands; did you mean {meant}?"


def test_a_prompt_that_is_a_file_is_hinted(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (hint,) = task_hint([f"{tmp_path}/a.png"])
    assert hint.endswith("a.png' is a file: PROMPT comes before PATHS")


def test_other_words_are_the_users_own() -> None:
    own = [
        "",
        "  ",
        "detect star",
        "DETECT star",
        "describe en",
        "en",
        "what is this?",
        "count cars",
    ]
    assert not list(task_hint([*own, "<image>detect star", "scratch", "oct", "anomaly"]))
