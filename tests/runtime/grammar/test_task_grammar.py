from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.text.tasks import Task


def test_the_grammar_is_that_of_the_task() -> None:
    assert task_grammar(Task.read()) is None
    assert task_grammar(Task.detect("cat")) == ObjectGrammar(("cat",), masks=False)
    assert task_grammar(Task.detect("all classes")) == ObjectGrammar(None, masks=False)
    assert task_grammar(Task.segment("cat"), any_label=True) == ObjectGrammar(None, masks=True)
