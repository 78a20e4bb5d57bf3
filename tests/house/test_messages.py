"""All that a person reads passes the one function that makes a stranger's text short and harmless.

Errors pass it when they are made (`PaliGemmaError`), and all that is printed in `Console`. Here the
source is read for ways around them.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

from paligemma_edge.runtime import errors
from paligemma_edge.runtime.printable import short_line
from tests.house.imports import FOLDERS, ROOT

CONSOLE = "runtime/system/console.py"
# What may touch the streams of the process, and why that is harmless.
AT_STREAMS = {
    CONSOLE: "escapes",
    "runtime/system/streams.py": "opens them",
    "runtime/cli/main.py": "lets them take any text",
    "runtime/cli/run.py": "reads names from standard input",
    "runtime/cli/parser.py": "argparse prints help, which is ours",
    "runtime/diagnostics/memory_use.py": "prints JSON in ASCII to its parent",
}
STREAMS = {"stdout", "stderr", "stdin", "__stdout__", "__stderr__"}
# What of Console prints as it is, and who may say that what it prints is harmless.
EXACT = {
    "runtime/cli/bench.py": "JSON",
    "runtime/cli/completion.py": "a script of ours",
    "runtime/cli/parser.py": "argparse's help, which is ours",
    "runtime/cli/inspect.py": "JSON",
    "runtime/run/report.py": "JSON",
    "runtime/run/single.py": "JSON",
    "quantize/cli.py": "a table whose cells are escaped",
    "export/cli/verify.py": "a table whose cells are escaped",
}
# Errors of other kinds, whose callers in the package make errors of ours of them.
INNER = {
    "export/checkpoint/npz.py": {"BadZipFile", "ValueError"},
    "runtime/serve/protocol.py": {"RemoteProtocolError"},
    "runtime/run/questions.py": {"ValueError"},
    "runtime/run/text_lines.py": {"ValueError"},
}
# What says that the package itself is at fault, or is no message at all.
OF_PYTHON = {"AssertionError", "AttributeError", "KeyboardInterrupt", "NotImplementedError"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


SOURCES = dict(sources())


def errors_of_ours() -> set[str]:
    """Names of the package's errors, and of those that rooms derive from them."""
    ours = {kind for kind in vars(errors) if kind.endswith("Error")}
    classes = [
        n for tree in SOURCES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    ]
    for _ in range(3):  # a class may stand before the one that it derives from
        ours |= {one.name for one in classes if {ast.unparse(base) for base in one.bases} & ours}
    return ours


def calls(name: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(SOURCES[name]) if isinstance(node, ast.Call))


def attributes(name: str, wanted: set[str]) -> list[str]:
    nodes = (node for node in ast.walk(SOURCES[name]) if isinstance(node, ast.Attribute))
    return [node.attr for node in nodes if node.attr in wanted]


def test_nothing_is_printed_around_the_console() -> None:
    printed = [
        f"{name}:{call.lineno}"
        for name in SOURCES
        for call in calls(name)
        if isinstance(call.func, ast.Name) and call.func.id in ("print", "input", "pprint")
    ]
    assert not printed, f"print through {CONSOLE}: {printed}"


def test_few_modules_touch_the_streams_of_the_process() -> None:
    touching = {name for name in SOURCES if attributes(name, STREAMS)}
    assert touching == set(AT_STREAMS)


def test_few_print_as_it_is() -> None:
    exact = {
        name
        for name in SOURCES
        for call in calls(name)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "exact"
    }
    assert exact - {CONSOLE} == set(EXACT)


def test_what_the_console_writes_is_escaped() -> None:
    """Each of its methods that writes calls the function, or one of its own that does."""
    (console,) = (
        node
        for node in SOURCES[CONSOLE].body
        if isinstance(node, ast.ClassDef) and node.name == "Console"
    )
    for method in (node for node in console.body if isinstance(node, ast.FunctionDef)):
        called = {ast.unparse(node.func) for node in ast.walk(method) if isinstance(node, ast.Call)}
        writes = called & {"self.out.write", "self.err.write", "self.exact"}
        if writes and method.name != "exact":
            assert called & {"printable", "one_line", "short_line"}, method.name


def test_rich_is_given_escaped_text_and_no_markup_of_strangers() -> None:
    users = {
        name
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich")
    }
    for name in users - {"runtime/cli/table.py"}:  # which gets a whole table
        assert "short_line" in ast.unparse(SOURCES[name]), name


def test_every_error_of_ours_is_made_harmless() -> None:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in found if issubclass(kind, errors.PaliGemmaError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert "__init__" not in vars(kind) or kind is errors.PaliGemmaError
        assert "__str__" not in vars(kind)


def test_what_is_raised_is_an_error_of_ours() -> None:
    """An OSError is made again as an OutputError; `from None` and without a message of its own."""
    ours = errors_of_ours() | OF_PYTHON | {"MismatchError"}
    for name, tree in SOURCES.items():
        raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
        kinds = {ast.unparse(e.func).rpartition(".")[2] for e in raised if isinstance(e, ast.Call)}
        for kind in kinds - ours - INNER.get(name, set()):
            if kind[0].isupper():
                known = getattr(builtins, kind, None)
                assert known is not None, f"{name} raises {kind}"
                assert issubclass(known, OSError), f"{name} raises {kind}"


def test_no_module_has_a_way_of_its_own() -> None:
    """To cut a text or to escape it, that is: two ways are one too many."""
    own = [
        f"{name}:{node.lineno}"
        for name, tree in SOURCES.items()
        if name not in ("runtime/printable.py", "runtime/results/draw.py")  # which counts pixels
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and any(_is_dots(part) for part in node.values)
    ]
    assert own == []
    assert short_line("x" * 9999) != "x" * 9999


def _is_dots(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and str(part.value) == "..."


def test_the_lists_name_files_that_are_there() -> None:
    assert all(Path(ROOT, name).is_file() for name in (*AT_STREAMS, *EXACT))
