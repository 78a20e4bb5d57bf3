from __future__ import annotations

from paligemma_edge.runtime.run.hints import prompt_hints


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
