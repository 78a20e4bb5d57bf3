"""The checks of shell lines fail where a line is wrong."""

from __future__ import annotations

import pytest

from tests.helpers.shell_lines import check_line, pipelines


def test_lines_become_words() -> None:
    code = 'A=1 make \\\n  demo  # why\n\nfind a | paligemma-edge run b "x ; y" - > out\n'
    assert pipelines(code) == [
        [["make", "demo"]],
        [["find", "a"], ["paligemma-edge", "run", "b", "x ; y", "-"]],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "make help check",
        "paligemma-edge export a.npz b.bundle --tokenizer c",
        "find a | paligemma-edge run b.bundle ocr -",
        "python -m samples.finetune",
        "pip install '.[cpu,video]' torch",
    ],
)
def test_right_lines_pass(line: str) -> None:
    for pipeline in pipelines(line):
        check_line(pipeline)


@pytest.mark.parametrize(
    "line",
    [
        "make everything",
        "paligemma-edge export a.npz b.bundle --no-such-option",
        "find a | paligemma-edge walk b.bundle",
        "python -m samples.no_such_module",
        "pip install '.[no-such-extra]'",
        "no-such-program",
    ],
)
def test_wrong_lines_fail(line: str) -> None:
    (pipeline,) = pipelines(line)
    with pytest.raises((AssertionError, KeyError, SystemExit)):
        check_line(pipeline)
