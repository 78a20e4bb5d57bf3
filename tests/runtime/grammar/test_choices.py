"""A closed set of answers: no other is possible, and each prefix is computed once for scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.logits import HostRow, Row
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.errors import OptionError, PromptError
from paligemma_edge.runtime.generation.choice_scoring import score_choices
from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.grammar.choices import MAX_CHOICES, Choices
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from tests.helpers.sample_tokenizer import EOS, IMAGE, MASK, encoder, encoder_with_two_ends, ids

VOCAB = 2176
Prefix = tuple[int, ...]


def said_by(choices: Choices) -> list[str]:
    """Every text that the grammar allows, each followed by the end."""
    texts: list[str] = []
    waiting: list[tuple[State, Prefix]] = [(choices.start(encoder()), ())]
    while waiting:
        state, tokens = waiting.pop()
        for token in ids(state):
            if token == EOS:
                assert ids(state.after(token)) == [EOS]
                texts.append(encoder().decode(tokens))
            else:
                waiting.append((state.after(token), (*tokens, token)))
    return texts


characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
answers = st.sampled_from(["yes", "yes please", "yellow", "no", "<loc0001>", "<eos>", "<image>"])
answers |= st.text(characters, min_size=1, max_size=6).map(str.strip).filter(bool)
choice_sets = st.lists(answers, min_size=1, max_size=8, unique=True).map(tuple)


@given(choice_sets)
def test_the_answers_and_nothing_else_can_be_said(answers: tuple[str, ...]) -> None:
    assert sorted(said_by(Choices(answers))) == sorted(answers)


def test_an_answer_has_the_tokens_that_training_wrote() -> None:
    choices = Choices(("red circle", "red"))
    state = choices.start(encoder())
    for token in encoder().continuation("red circle"):
        assert token in ids(state)
        state = state.after(token)
    assert ids(state) == [EOS]


def test_any_of_several_ends_may_end_a_choice() -> None:
    choices = Choices(("red circle", "red"))
    state = choices.start(encoder_with_two_ends())
    for token in encoder().continuation("red"):
        state = state.after(token)
    assert {EOS, MASK} < set(ids(state))
    for end in (EOS, MASK):
        assert ids(state.after(end)) == [EOS, MASK]


class FakeReader:
    """Random logits for every prefix, as a cache would give them that is read again and again."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.held: list[int] = []
        self.read: list[Prefix] = []
        self.row = np.zeros(VOCAB, np.float32)

    def logits(self, prefix: Prefix) -> NDArray[np.float32]:
        random = np.random.default_rng([self.seed, *prefix])
        row = random.normal(0, 3, VOCAB).astype(np.float32)
        row[IMAGE:] = 50  # rows that are no answer, however likely
        return row

    def __call__(self, depth: int, token: int) -> Row:
        assert depth <= len(self.held), "what stands before was never read"
        self.held[depth:] = [token]
        self.read.append(tuple(self.held))
        self.row[:] = self.logits(tuple(self.held))
        return HostRow(self.row, IMAGE)

    def score(self, tokens: Prefix) -> float:
        total = 0.0
        for place, token in enumerate(tokens):
            row = self.logits(tokens[:place])[:IMAGE].astype(np.float64)
            total += row[token] - np.log(np.exp(row).sum())
        return total


@settings(max_examples=60)
@given(choice_sets, st.integers(0, 2**32 - 1))
def test_the_scores_are_those_of_each_answer_alone(answers: tuple[str, ...], seed: int) -> None:
    reader = FakeReader(seed)
    reader.row[:] = reader.logits(())  # that of the prompt is written over, too
    scores = score_choices(Choices(answers), encoder(), HostRow(reader.row, IMAGE), reader)
    tokens = {answer: encoder().continuation(answer) for answer in answers}
    assert list(scores) == list(answers)
    for answer, score in scores.items():
        assert score == pytest.approx(reader.score((*tokens[answer], EOS)), abs=1e-5)
    prefixes = {ids[:end] for ids in tokens.values() for end in range(1, len(ids) + 1)}
    assert len(reader.read) == len(prefixes)
    assert set(reader.read) == prefixes


def test_the_score_of_a_choice_is_that_of_any_of_its_ends() -> None:
    reader, choices = FakeReader(3), Choices(("red circle", "red", "blue"))
    reader.row[:] = reader.logits(())
    scores = score_choices(choices, encoder_with_two_ends(), HostRow(reader.row, IMAGE), reader)
    for answer, score in scores.items():
        tokens = encoder().continuation(answer)
        ends = [np.exp(reader.score((*tokens, end))) for end in (EOS, MASK)]
        assert score == pytest.approx(np.log(sum(ends)), abs=1e-5)


def test_the_scores_are_those_of_the_model_fed_with_each_answer(
    shapes_loaded: LoadedModel, shapes_images: Path
) -> None:
    engine = shapes_loaded.engine
    image = load_image(shapes_images / "00.png")
    pipeline = shapes_loaded.pipeline
    prompt = pipeline.encode(pipeline.read_images([image]), "answer en which shapes are there?")
    choices = Choices(("red circle", "red square", "red", "blue star", "a red circle"))

    cache = engine.cache(1, prompt.length + choices.longest(shapes_loaded.encoder))
    first = engine.prefill(cache, 0, prompt.image_features, prompt.ids)
    stepper = engine.stepper(cache, 1)

    def read(depth: int, token: int) -> Row:
        cache.lengths[0] = prompt.length + depth
        return stepper.step([token])[0]

    scores = score_choices(choices, shapes_loaded.encoder, first, read)
    for answer in choices.answers:
        tokens = (*shapes_loaded.encoder.continuation(answer), EOS)
        expected = 0.0
        for row, token in zip(replay(engine, prompt, tokens), tokens, strict=True):
            logits = row.answer_logits.astype(np.float64)
            expected += logits[token] - np.log(np.exp(logits).sum())
        assert scores[answer] == pytest.approx(expected, abs=1e-4)
    assert len(set(scores.values())) == len(scores)


def test_the_longest_answer_is_counted_with_its_end() -> None:
    choices = Choices(("a", "red circle", "no"))
    assert choices.longest(encoder()) == len(encoder().continuation("red circle")) + 1


def test_a_very_long_answer_is_walked_too() -> None:
    text = "no " * 3000 + "end"
    assert said_by(Choices((text, "no"))) in ([text, "no"], ["no", text])
    scores = score_choices(Choices((text,)), encoder(), _flat(0, 0), _flat)
    length = len(encoder().continuation(text)) + 1
    assert scores[text] == pytest.approx(-length * np.log(IMAGE), rel=1e-6)


def _flat(depth: int, token: int) -> Row:
    return HostRow(np.zeros(VOCAB, np.float32), IMAGE)


def test_blanks_around_an_answer_are_left_out() -> None:
    assert Choices((" yes\n", "no")).answers == ("yes", "no")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((), r"the choices are \(\), wanted answers such as"),
        ("yes", "the choices are 'yes', wanted answers such as"),
        (("yes", " \n"), r"a choice is ' \\n', wanted answers such as"),
        (("yes", None), "a choice is None, wanted answers such as"),
        (("yes", "no", " yes"), "the choice 'yes' is there twice; give each once"),
        (tuple(map(str, range(MAX_CHOICES + 1))), "there are 10001 choices, wanted at most 10000"),
    ],
)
def test_sets_that_are_none_are_refused(answers: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=f"^{message}") as caught:
        Choices(answers)
    assert "\n" not in str(caught.value)


def test_one_text_is_no_set_of_its_letters() -> None:
    with pytest.raises(OptionError, match=r"^the choices are 'yes', wanted answers such as"):
        Choices.of("yes")
    assert Choices.of(answer for answer in ["yes", "no"]).answers == ("yes", "no")


def test_an_answer_that_the_tokenizer_cannot_write_is_refused() -> None:
    choices = Choices(("a▁b",))
    with pytest.raises(PromptError, match="'a▁b' cannot be an answer"):
        choices.start(encoder())
    with pytest.raises(PromptError, match="'a▁b' cannot be an answer"):
        choices.longest(encoder())
