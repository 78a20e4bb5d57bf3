from __future__ import annotations

from paligemma_edge.runtime.suggestion import suggestion

NAMES = ("cpu-int4", "cpu-int8", "cpu-fast")


def test_a_near_name_is_suggested_and_no_other() -> None:
    assert suggestion("cpu_int4", NAMES) == "; did you mean cpu-int4?"
    assert suggestion("--max-token", ["--max-new-tokens"]) == "; did you mean --max-new-tokens?"
    assert suggestion("tiny", NAMES) == suggestion(None, NAMES) == suggestion("cpu", ()) == ""
