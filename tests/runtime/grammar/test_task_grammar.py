from typing import Any

import pytest

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.text.tasks import Task


def test_the_grammar_is_that_of_the_task() -> None:
    assert task_grammar(Task.ocr()) is None
    assert task_grammar(Task.detect("cat")) == ObjectGrammar(None, masks=False)
    assert task_grammar(Task.segment("cat"), "any") == ObjectGrammar(None, masks=True)
    assert task_grammar(Task.segment("cat"), "asked") == ObjectGrammar(("cat",), masks=True)
    assert task_grammar(Task.detect("all classes"), "asked") == ObjectGrammar(None, masks=False)


@pytest.mark.parametrize("labels", ["all", None, ("cat",)])
def test_labels_are_any_or_those_asked_for(labels: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match='wanted "any" for the model\'s own labels, or "asked"'):
        task_grammar(Task.ocr(), labels)
