"""How a process of ours begins and ends: its signals, and the streams that it was started with."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.system.streams import Waiting

INTERRUPTED = "paligemma-edge: interrupted\n"
PROGRAM = (sys.executable, "-m", "paligemma_edge")
SHORT = ("--max-new-tokens", "2", "-q")
# Sends itself a signal when a module is first looked for, as a user who is quick.
SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
number, module = int(sys.argv.pop(1)), sys.argv.pop(1)
class Quick:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Quick())
from paligemma_edge.runtime.cli.start import main
sys.exit(main())
"""
# At the end: other code is left that Python runs, such as that of `atexit`.
LATE = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
number = int(sys.argv.pop(1))
atexit.register(lambda: os.kill(os.getpid(), number))
from paligemma_edge.runtime.cli.start import main
sys.exit(main())
"""


def ask(bundle: Path, images: Path, *more: str | Path) -> list[str]:
    return list(map(str, ("run", bundle, "caption en", images / "00.png", *SHORT, *more)))


@pytest.mark.parametrize(
    "module",
    [
        "paligemma_edge.runtime.system.streams",
        "paligemma_edge.runtime.cli.main",
        "argparse",
        "paligemma_edge.runtime.cli.run",
        "numpy.linalg",
        "onnxruntime",
        "sentencepiece",
    ],
)
def test_a_signal_amid_an_import_ends_it_without_a_traceback(
    shapes_bundle: Path, shapes_images: Path, module: str
) -> None:
    number = signal.SIGTERM if module == "onnxruntime" else signal.SIGINT
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), module]
    command += ask(shapes_bundle, shapes_images)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", INTERRUPTED)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_when_all_is_done_is_no_traceback(number: signal.Signals) -> None:
    command = [sys.executable, "-c", LATE, str(int(number)), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    assert done.stderr == INTERRUPTED


def test_a_signal_that_is_ignored_stays_so(shapes_bundle: Path, shapes_images: Path) -> None:
    code = SIGNALLED.replace("signal.default_int_handler", "signal.SIG_IGN")
    command = [sys.executable, "-c", code, str(int(signal.SIGINT)), "numpy"]
    done = subprocess.run([*command, *ask(shapes_bundle, shapes_images)], check=False)
    assert done.returncode == 0


def closed(
    descriptors: Sequence[int], *arguments: str, program: Sequence[str | Path] = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """A command that is started without these descriptors."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return subprocess.run(
        [*program, *arguments], capture_output=True, text=True, check=False, preexec_fn=close
    )


EVERY_WAY = [(0,), (1,), (2,), (0, 1, 2)]


@pytest.mark.parametrize("descriptors", EVERY_WAY)
def test_work_whose_result_is_a_file_needs_no_stream(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path, descriptors: Sequence[int]
) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    done = closed(descriptors, *ask(shapes_bundle, shapes_images, "--out", out, "--draw", drawn))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(out.read_text())["text"]
    assert (drawn / "00.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("descriptors", EVERY_WAY)
def test_a_result_that_has_nowhere_to_go_is_a_failure(
    shapes_bundle: Path, shapes_images: Path, descriptors: Sequence[int]
) -> None:
    done = closed(descriptors, *ask(shapes_bundle, shapes_images))
    lost = 1 in descriptors
    assert done.returncode == (1 if lost else 0)
    assert bool(done.stdout) is not lost
    told = "paligemma-edge: cannot write standard output: it is closed; check where it leads\n"
    assert done.stderr == (told if lost and 2 not in descriptors else "")


@pytest.mark.parametrize(("number", "name"), [(1, "/dev/stdout"), (2, "/dev/stderr")])
def test_an_output_that_is_closed_is_no_place_for_answers(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path, number: int, name: str
) -> None:
    """It is none for coreutils either, by any of its names."""
    (tmp_path / "link.jsonl").symlink_to(name)
    for target in (name, f"/dev/fd/{number}", f"/proc/self/fd/{number}", tmp_path / "link.jsonl"):
        arguments = ask(shapes_bundle, shapes_images, "--out", target)
        done, theirs = closed((number,), *arguments), closed((number,), program=("tee", target))
        assert (done.returncode, theirs.returncode) == (1, 1)
        told = f"paligemma-edge: cannot write {target}: it is closed; give another name to --out\n"
        assert done.stderr == (told if number == 1 else "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["run", "--help"]])
def test_help_that_cannot_be_written_is_a_failure(arguments: list[str], unbuffered: str) -> None:
    """As of `ls --help`, whether or not Python writes at once."""
    done, theirs = (
        subprocess.run(
            ["sh", "-c", 'exec "$@" >/dev/full', "sh", *command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "LC_ALL": "C.UTF-8"},
        )
        for command in ([*PROGRAM, *arguments], ["ls", "--help"])
    )
    assert theirs.returncode != 0
    assert theirs.stderr.endswith("No space left on device\n")
    assert (done.returncode, done.stderr) == (
        3,
        "paligemma-edge: cannot write standard output: No space left on device; free some space\n",
    )


def test_a_list_on_a_closed_input_is_told(shapes_bundle: Path, tmp_path: Path) -> None:
    for more in (["caption en", "-"], ["--questions", "-"]):
        for out in ([], ["--out", str(tmp_path / "out.jsonl")]):
            done = closed((0,), "run", str(shapes_bundle), *more, "-q", *out)
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert "cannot be read (Bad file descriptor)" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "inspect", "--help"])
def test_a_verdict_is_the_exit_code_and_words_are_for_the_output(
    shapes_bundle: Path, command: str
) -> None:
    arguments = [command] if command.startswith("-") else [command, str(shapes_bundle), "-q"]
    assert closed((1,), *arguments).returncode == (0 if command == "check" else 1)
    assert closed((0, 2), *arguments).returncode == 0


def test_no_file_of_ours_has_the_number_of_a_stream(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys\n"
        "from paligemma_edge.runtime.run.journal import Journal\n"
        "append = Journal.append\n"
        "def look(journal, record):\n"
        "    names = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        f"    open({str(tmp_path / 'seen')!r}, 'w').write(repr((names, journal._descriptor > 2)))\n"
        "    append(journal, record)\n"
        "Journal.append = look\n"
        "from paligemma_edge.runtime.cli.start import main\n"
        "sys.exit(main())\n"
    )
    arguments = ask(shapes_bundle, shapes_images, "--out", tmp_path / "out.jsonl")
    done = closed((0, 1, 2), *arguments, program=(sys.executable, "-c", code))
    assert done.returncode == 0
    assert (tmp_path / "seen").read_text() == repr((["/dev/null"] * 3, True))


def test_the_process_that_measures_memory_needs_no_input(
    shapes_bundle: Path, shapes_images: Path
) -> None:
    program = (sys.executable, "-m", "paligemma_edge.runtime.diagnostics.memory_use")
    arguments = (str(shapes_bundle), "cpu-fp32", str(shapes_images / "00.png"), "caption en", "2")
    done = closed((0, 2), *arguments, program=program)
    assert done.returncode == 0
    assert json.loads(done.stdout)["peak_bytes"]
    assert closed((0, 1, 2), *arguments, program=program).returncode != 0


@pytest.mark.parametrize("end", ["stdout", "stderr"])
def test_messages_that_cannot_be_written_stop_nothing(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path, end: str
) -> None:
    arguments = ask(shapes_bundle, shapes_images, "--out", tmp_path / "out.jsonl")
    arguments.remove("-q")
    with Path("/dev/full").open("wb") as full:
        streams: dict[str, Any] = {"stdout": None, "stderr": None, end: full}
        done = subprocess.run([*PROGRAM, *arguments], check=False, **streams)
    assert done.returncode == 0
    assert (tmp_path / "out.jsonl").exists()


def test_streams_that_another_program_made_non_blocking_are_waited_for(
    shapes_bundle: Path, shapes_images: Path
) -> None:
    (list_end, list_in), (out_end, out_in) = os.pipe(), os.pipe()
    fcntl.fcntl(out_in, fcntl.F_SETPIPE_SZ, 4096)  # a page: it is full at once
    for descriptor in (list_end, out_in):
        os.set_blocking(descriptor, False)
    command = [*PROGRAM, "run", str(shapes_bundle), "caption en", "-", *SHORT]
    with subprocess.Popen([*command, "--json"], stdin=list_end, stdout=out_in) as process:
        os.close(list_end)
        os.close(out_in)
        with os.fdopen(list_in, "w") as names, os.fdopen(out_end) as answers:
            names.write(f"{shapes_images}/00.png\n")
            names.flush()
            first = answers.readline()  # by then it waits for another name
            names.writelines(f"{shapes_images}/./{'./' * n}00.png\n" for n in range(40))
            names.close()
            assert process.stdout is None
            records = [json.loads(first), *map(json.loads, answers)]
        assert process.wait(60) == 0
    assert len(records) == 41
    assert {record["text"] for record in records} == {records[0]["text"]}


def test_a_waiting_descriptor_reads_to_the_end() -> None:
    end, start = os.pipe()
    os.set_blocking(end, False)
    os.write(start, b"abc")
    os.close(start)
    with Waiting(end, "rb") as file:
        assert file.read() == b"abc"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONUNBUFFERED": "1"},
    ],
)
def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(
    shapes_bundle: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    name = os.fsencode(tmp_path) + "/\u661f\u202e\n.png".encode()
    done = subprocess.run(
        [*PROGRAM, "run", str(shapes_bundle), "caption en", name],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1
    line = done.stderr.decode("ascii" if "LC_ALL" in environment else "latin-1").splitlines()[-1]
    assert line.isprintable()
    assert "Traceback" not in line
    assert r"\n.png: no such file" in line
