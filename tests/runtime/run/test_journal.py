from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.errors import OptionError, OutputError
from paligemma_edge.runtime.run.journal import Journal, journal_of

RUN = {"bundle": "12ab", "prompts": ["caption en"], "max_new_tokens": 16}


def record(name: str, prompt: str = "caption en", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"image": name, "prompt": prompt, "text": f"about {name}", **more}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def texts(journal: Journal, *order: str) -> list[str]:
    keys = [(name, "caption en") for name in order]
    return [found["text"] for found in journal.records(keys)]


def test_what_was_answered_is_there_when_the_run_goes_on(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        for name in ("b.png", "\udce9.png", "a.png"):
            journal.append(record(name, **({"error": "?"} if name == "b.png" else {})))
        assert (len(journal), journal.failures) == (3, 1)
    with Journal.open(target, RUN) as journal:
        assert (len(journal), journal.failures) == (3, 1)
        assert ("a.png", "caption en") in journal
        assert ("b.png", "caption en") not in journal  # it failed, and is asked again
        assert ("a.png", "caption de") not in journal
        journal.append(record("c.png"))
        wanted = ["about a.png", "about \udce9.png", "about c.png", "about b.png"]
        assert texts(journal, "a.png", "\udce9.png", "c.png", "b.png") == wanted


def test_an_answer_takes_the_place_of_a_failure(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a", error="?"))
        assert (len(journal), journal.answers, journal.failures) == (1, 0, 1)
        journal.append(record("a"))
    with Journal.open(target, RUN) as journal:
        assert (len(journal), journal.answers, journal.failures) == (1, 1, 0)
        (found,) = journal.records([("a", "caption en")])
        assert found == record("a")


def test_what_vanished_is_forgotten(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
        journal.append(record("b", error="?"))
        journal.keep_only([("a", "caption en"), ("c", "caption en")])
        assert (journal.keys, journal.failures) == ((("a", "caption en"),), 0)


def test_records_come_in_the_requested_order_and_no_others(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        for name in "dbca":
            journal.append(record(name))
        wanted = ["about a", "about b"]
        assert texts(journal, "a", "x", "b", "a") == wanted
        assert texts(journal, "a", "x", "b", "a") == wanted  # as often as one likes


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_was_cut_short_is_answered_again(target: Path, cut: int) -> None:
    with Journal.open(target, RUN) as journal:
        for name in "ab":
            journal.append(record(name))
    data = journal_of(target).read_bytes()
    journal_of(target).write_bytes(data[:-cut])
    with Journal.open(target, RUN) as journal:
        assert texts(journal, *"ab") == ["about a"]
        journal.append(record("b"))
    assert journal_of(target).read_bytes() == data


@pytest.mark.parametrize("cut", [0, 1, 20, 60])
def test_a_first_line_that_was_cut_short_begins_anew(target: Path, cut: int) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    first = journal_of(target).read_bytes().splitlines(keepends=True)[0]
    journal_of(target).write_bytes(first[:cut])
    with Journal.open(target, RUN) as journal:
        assert len(journal) == 0
        journal.append(record("a"))
    assert journal_of(target).read_bytes().startswith(first)


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 30,
        b"[]",
        b'{"image":1,"prompt":"x"}',
        b'{"image":"b","prompt":"caption en","text":1,"objects":5}',  # of wrong types
        b"\xff{",
        b"[" * 100_000,
        b'{"image":"a"' + b"x" * 3_000_000,
        b"",
    ],
)
def test_a_damaged_line_costs_no_other(target: Path, damage: bytes) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
        journal.append(record("b"))
    first, a, b = journal_of(target).read_bytes().splitlines(keepends=True)
    damaged = first + a + damage + b"\n" + b + damage
    journal_of(target).write_bytes(damaged)
    told: list[str] = []
    for _ in range(2):  # and it is told once
        with Journal.open(target, RUN, note=told.append) as journal:
            assert texts(journal, *"ab") == ["about a", "about b"]
        assert journal_of(target).read_bytes() == first + a + b
    (line,) = told
    assert line.startswith(f"{journal_of(target)} was damaged in 1 of its lines; ")
    assert line.endswith("kept as out.jsonl.partial.damaged")
    assert target.with_name("out.jsonl.partial.damaged").read_bytes() == damaged


def test_any_byte_that_changed_costs_the_record_that_it_is_in(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
        journal.append(record("b"))
    whole = journal_of(target).read_bytes()
    first, a, _ = whole.splitlines(keepends=True)
    for place in range(len(first), len(first + a) - 1, 7):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        journal_of(target).write_bytes(changed)
        with Journal.open(target, RUN) as journal:
            assert texts(journal, *"ab") == ["about b"]
            journal.append(record("a"))


def test_records_of_another_run_are_not_taken_for_this_one_s(target: Path) -> None:
    other = {**RUN, "max_new_tokens": 4}
    with Journal.open(target, other) as journal:
        journal.append(record("b", text="of the other"))
    mixed = journal_of(target).read_bytes()
    journal_of(target).unlink()
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    mixed = journal_of(target).read_bytes() + mixed
    journal_of(target).write_bytes(mixed)
    told: list[str] = []
    with Journal.open(target, RUN, note=told.append) as journal:
        assert texts(journal, *"ab") == ["about a"]
    assert "damaged in 2 of its lines" in told[0]
    assert target.with_name("out.jsonl.partial.damaged").read_bytes() == mixed


@pytest.mark.parametrize("first", [b"\0" * 4096 + b"\n", b'{"paligemma_edge_run": 3}\n', b"\xff\n"])
def test_without_its_first_line_a_journal_is_known_by_its_records(
    target: Path, first: bytes
) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    whole = journal_of(target).read_bytes()
    damaged = first + whole.split(b"\n", 1)[1]
    journal_of(target).write_bytes(damaged)
    told: list[str] = []
    with Journal.open(target, RUN, note=told.append) as journal:
        assert texts(journal, "a") == ["about a"]
    assert len(told) == 1
    assert journal_of(target).read_bytes() == whole


@pytest.mark.parametrize("left", [b"\0" * 99_999, b'{"paligemma_edge_run": 3}\n', b"\0\n\0\n"])
def test_a_journal_of_which_nothing_is_left_begins_anew_and_is_kept(
    target: Path, left: bytes
) -> None:
    for count in ("", "1", "2"):
        journal_of(target).write_bytes(left)
        told: list[str] = []
        with Journal.open(target, RUN, note=told.append) as journal:
            assert len(journal) == 0
        assert len(told) == 1
        assert not journal_of(target).exists()
        assert target.with_name(f"out.jsonl.partial.damaged{count}").read_bytes() == left


def test_a_damaged_journal_stays_where_there_is_no_room_to_mend_it(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    damaged = journal_of(target).read_bytes() + b"?\n"
    journal_of(target).write_bytes(damaged)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="free some space"):
        patch.setattr(os, "pwrite", no_room)
        Journal.open(target, RUN)
    assert journal_of(target).read_bytes() == damaged
    assert list(tmp_path.iterdir()) == [journal_of(target)]


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_no_empty_journal(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="free some space"):
        patch.setattr(os, "pwrite", no_room)
        Journal.open(target, RUN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_file_is_no_journal(target: Path, make: Callable[[Path], None]) -> None:
    make(journal_of(target))
    with pytest.raises(OutputError, match=r"not the journal of a run|cannot write"):
        Journal.open(target, RUN)
    assert os.path.lexists(journal_of(target))


def test_another_run_is_refused_by_what_differs(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    before = journal_of(target).read_bytes()
    other = {**RUN, "prompts": ["detect cat"], "seed": 3}
    with pytest.raises(OptionError) as caught:
        Journal.open(target, other)
    message = str(caught.value)
    assert 'prompts ["caption en"], seed null, now prompts ["detect cat"], seed 3' in message
    assert "bundle" not in message
    assert f"delete {journal_of(target)}" in message
    assert journal_of(target).read_bytes() == before


def test_long_values_are_shortened_where_they_are_reported(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
    with pytest.raises(OptionError) as caught:
        Journal.open(target, {**RUN, "paths": ["x.png"] * 1000})
    assert len(str(caught.value)) < 300 + len(str(target)) * 2


@pytest.mark.parametrize("text", ["mine\n", "no line", '{"a": 1}\n', "\xff\n", "[" * 99_999 + "\n"])
def test_a_file_of_somebody_else_is_left_alone(target: Path, text: str) -> None:
    journal_of(target).write_text(text)
    with pytest.raises(OutputError, match="is not the journal of a run"):
        Journal.open(target, RUN)
    assert journal_of(target).read_text() == text


def test_a_second_run_at_once_is_refused_and_may_come_later(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
        with pytest.raises(OutputError, match="another run is writing"):
            Journal.open(target, RUN)
    with Journal.open(target, RUN) as journal:
        assert len(journal) == 1
        journal.remove()
    assert not journal_of(target).exists()
    with Journal.open(target, RUN) as journal:
        assert len(journal) == 0


def test_a_killed_process_leaves_its_lines_and_no_lock(target: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from paligemma_edge.runtime.run.journal import Journal\n"
        f"journal = Journal.open(Path(sys.argv[1]), {RUN!r})\n"
        f"journal.append({record('a')!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode < 0
    with Journal.open(target, RUN) as journal:
        assert texts(journal, "a") == ["about a"]


def test_a_run_without_an_answer_leaves_nothing(target: Path, tmp_path: Path) -> None:
    with Journal.open(target, RUN):
        assert journal_of(target).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", [0, 7])
def test_a_full_disk_takes_no_half_line(
    target: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    pwrite, room = os.pwrite, [taken]

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if room and (length := room.pop()):
            return pwrite(descriptor, data[:length], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(target, RUN) as journal:
        journal.append(record("a"))
        before = journal_of(target).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OutputError, match="free some space") as caught:
                journal.append(record("b"))
        assert caught.value.errno == errno.ENOSPC
        assert journal_of(target).read_bytes() == before
        assert ("b", "caption en") not in journal
        journal.append(record("b"))
        assert texts(journal, "b", "a") == ["about b", "about a"]


def test_the_disk_is_waited_for_every_few_seconds(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    now = [0.0]
    with Journal.open(target, RUN, clock=lambda: now[0]) as journal:
        for number in range(20):
            now[0] += 1
            journal.append(record(str(number)))
    assert len(synced) == 4


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        Journal.open(tmp_path / "no" / "out.jsonl", RUN)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        Journal.open(tmp_path / "folder.csv", RUN)
    (tmp_path / "x.csv.partial").mkdir()
    with pytest.raises(OutputError, match=r"x\.csv\.partial: Is a directory"):
        Journal.open(tmp_path / "x.csv", RUN)


def test_a_link_in_the_journals_place_is_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    journal_of(target).symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="cannot write"):
        Journal.open(target, RUN)
    assert (tmp_path / "mine").read_text() == ""


def test_a_record_is_one_line_of_ascii(target: Path) -> None:
    with Journal.open(target, RUN) as journal:
        journal.append(record("é\n.png"))
        lines = journal_of(target).read_bytes().decode("ascii").splitlines()
    assert json.loads(lines[1]) == record("é\n.png", sum=lines[1][-10:-2])
    assert len(lines) == 2
