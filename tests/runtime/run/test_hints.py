from __future__ import annotations

from paligemma_edge.runtime.run.hints import left_out_hint, prompt_hints


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
        "left out of the folders, no images by their names: "
        "1,200 .txt, 2 .heic, 1 without an ending"
    )
    (hint,) = left_out_hint({f".{n}": 1 for n in range(20)} | {".\x1b[2J": 99})
    assert "99 .\\x1b[2J, 1 .0" in hint
    assert hint.endswith("13 others")
