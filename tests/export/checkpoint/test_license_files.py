"""Licence and terms beside the weights: short plain text of the checkpoint's own, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paligemma_edge.export.checkpoint.license_files import LICENSE_NAMES, read_license_files
from tests.helpers.fake_hub import keep

TEXT = "Gemma Terms of Use\n\tSection 1.\u00a0\u00a9 \u201cGoogle\u201d\r\n"


def write(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(TEXT, encoding="utf-8", newline="")


def test_names_of_licences_and_no_others(tmp_path: Path) -> None:
    known = ["LICENSE", "LICENSE-APACHE.md", "Licence.txt", "NOTICE", "USE_POLICY.md"]
    known += ["gemma_terms_of_use.txt", "TERMS", "copying.LESSER", "prohibited_use_policy"]
    write(
        tmp_path, *known, "README.md", "config.json", "licensed.txt", "NOTICE (1).txt", "myLICENSE"
    )
    (tmp_path / "terms.d").mkdir()
    found = read_license_files(tmp_path)
    assert sorted(found.contents) == sorted(known)
    assert set(found.contents.values()) == {TEXT.encode()}
    assert found.refused == ()


def test_every_name_that_is_fetched_is_taken(tmp_path: Path) -> None:
    for name in LICENSE_NAMES:
        write(tmp_path, name)
        assert list(read_license_files(tmp_path).contents) == [name]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a" * (1 << 20) + b"b", "more than 1 MiB"),
        (b"%PDF-1.4 \xff\xfe", "not plain UTF-8 text"),
        (b"a\x1b[2Jb", "not plain UTF-8 text"),
        (b"a\0b", "not plain UTF-8 text"),
    ],
)
def test_what_is_not_a_short_text_is_left_out_and_named(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "LICENSE").write_bytes(data)
    write(tmp_path, "NOTICE")
    found = read_license_files(tmp_path)
    assert list(found.contents) == ["NOTICE"]
    (line,) = found.refused
    assert line.startswith("LICENSE is left out: ")
    assert reason in line


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "secret")
    folder = tmp_path / "checkpoint"
    write(folder, "text")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    (folder / "NOTICE").symlink_to("text")
    (folder / "TERMS").symlink_to("TERMS")
    os.mkfifo(folder / "COPYING")
    found = read_license_files(folder)
    assert list(found.contents) == ["NOTICE"]
    assert [line.partition(" ")[0] for line in found.refused] == ["COPYING", "LICENSE", "TERMS"]


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "repository", "LICENSE.txt")
    snapshot = keep(tmp_path / "hub", "me/x", tmp_path / "repository")
    (snapshot / "NOTICE").symlink_to(tmp_path / "repository" / "LICENSE.txt")
    found = read_license_files(snapshot)
    assert list(found.contents) == ["LICENSE.txt"]
    assert len(found.refused) == 1


def test_a_great_many_files(tmp_path: Path) -> None:
    write(tmp_path, *(f"LICENSE-{number:02}" for number in range(40)))
    found = read_license_files(tmp_path)
    assert (len(found.contents), len(found.refused)) == (32, 8)


def test_a_directory_that_cannot_be_listed(tmp_path: Path) -> None:
    assert read_license_files(tmp_path / "no").contents == {}
