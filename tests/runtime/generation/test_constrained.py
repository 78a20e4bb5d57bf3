"""What a grammar of objects makes of whole models' answers: of the sample model's, and of noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge.export.exporter import export
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.runtime.generation.sampling import TopSampling
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.model import PaliGemma
from paligemma_edge.runtime.results.build import IN_WORDS, object_result
from paligemma_edge.runtime.text.tasks import Task
from tests.conftest import MakeCheckpoint
from tests.helpers.object_form import CORNERS, is_of_the_form
from tests.helpers.sample_tokenizer import EOS


@pytest.fixture(scope="module")
def noise_model(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> PaliGemma:
    """Random weights: its answers are any tokens."""
    bundle = tmp_path_factory.mktemp("noise") / "noise.bundle"
    export(make_checkpoint(), bundle)
    return PaliGemma(bundle, device="cpu")


def images(count: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(7)
    return [random.integers(0, 255, (20, 30, 3), np.uint8) for _ in range(count)]


def test_answers_of_the_form_are_those_of_the_unconstrained_model(shapes_model: PaliGemma) -> None:
    same = 0
    for question in sample_questions()[:30]:
        task = Task.of(question.prompt)
        if (grammar := task_grammar(task)) is not None:
            free = shapes_model.generate(question.image, task.prompt)
            held = shapes_model.generate(question.image, task.prompt, grammar=grammar)
            assert is_of_the_form(free.token_ids, task.masks) == (held == free)
            same += held == free
    assert same >= 5


@pytest.mark.parametrize("top_k", [None, 0, 9])
def test_noise_is_words_or_objects_never_both(noise_model: PaliGemma, top_k: int | None) -> None:
    counted = {"words": 0, "objects": 0}
    for seed, image in enumerate(images(16)):
        sampling = None if top_k is None else TopSampling(top_k=top_k, seed=seed)
        for prompt in ("detect cat", "segment cat"):
            task = Task.of(prompt)
            free, held = (
                noise_model.generate(
                    image, prompt, sampling=sampling, grammar=grammar, max_new_tokens=12
                )
                for grammar in (None, task_grammar(task))
            )
            result = object_result(task, held, (30, 20), None, constrained=True)
            assert result.text == held.text
            if held.token_ids[0] in CORNERS:
                counted["objects"] += 1
                assert len(result) or held.finish_reason == "length"
                assert IN_WORDS not in result.notes
            else:
                counted["words"] += 1
                if sampling is None:
                    assert held.token_ids == free.token_ids or free.token_ids[0] == CORNERS[-1]
                assert len(result) == 0
                assert result.notes == ((IN_WORDS,) if held.text else ())
    assert min(counted.values()) > 2


def test_no_token_is_an_answer_without_objects_and_without_a_note(shapes_model: PaliGemma) -> None:
    task = Task.of("detect cat")
    (image,) = images(1)
    held = shapes_model.generate(image, task.prompt, grammar=task_grammar(task), max_new_tokens=1)
    if held.token_ids == (EOS,):
        result = object_result(task, held, (30, 20), None, constrained=True)
        assert (len(result), result.notes, result.text) == (0, (), "")
