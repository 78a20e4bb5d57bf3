from __future__ import annotations

import builtins
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.errors import ImageError, MissingExtraError, OptionError
from paligemma_edge.runtime.images.formats import WANTED
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.run import video as frames
from paligemma_edge.runtime.run.sources import Sources, find_sources


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of many names, with nothing in them: a list opens none."""
    names = ("b.jpg", "a.PNG", "notes.txt", "x/c.webp", "x/y/d.bmp", "x/e.Jpeg", ".f.png")
    for name in (*names, ".hidden/g.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*paths: str, stdin: str = "") -> Sources:
    return find_sources(paths, io.StringIO(stdin))


def names(sources: Sources) -> list[str]:
    return [source.name for source in sources]


ALL = ["photos/a.PNG", "photos/b.jpg", "photos/x/c.webp", "photos/x/e.Jpeg", "photos/x/y/d.bmp"]


def test_a_folder_is_all_images_below_it_in_order_without_hidden_ones() -> None:
    sources = find("photos")
    assert names(sources) == ALL
    assert sources.count == 5
    assert [source.name for source in sources.known] == ALL
    assert names(find("photos/")) == ALL


def test_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "open", opened)
    assert find("photos", "photos/b.jpg", "missing.png").count == 6


def test_every_usual_ending_is_an_image_and_the_rest_is_counted_by_kind(tree: Path) -> None:
    images = ("a.jfif", "b.JPE", "c.mpo", "d.apng", "e.dib", "f.gif", "g.TIFF", "h.tif", "i.avif")
    for name in (*images, "film.MP4", "phone.heic", "more.TXT", "README", ".hidden.txt"):
        (tree / "empty" / name).touch()
    sources = find("photos", "empty")
    assert names(sources) == [*ALL, *(f"empty/{name}" for name in sorted(images))]
    assert sources.left_out == {".txt": 2, ".mp4": 1, ".heic": 1, "": 1}
    assert not find("photos/a.PNG", "photos/*.jpg").left_out


def test_globs_that_the_shell_left_alone() -> None:
    assert names(find("photos/*.jpg")) == ["photos/b.jpg"]
    assert names(find("photos/**/*.bmp")) == ["photos/x/y/d.bmp"]
    assert sorted(names(find("photos/**"))) == ALL  # no folders, no notes
    assert names(find("photos/?.PNG", "photos/[ab].*")) == ["photos/a.PNG", "photos/b.jpg"]


def test_a_name_that_exists_is_no_glob(tree: Path) -> None:
    (tree / "a[1].png").touch()
    (tree / "a1.png").touch()
    assert names(find("a[1].png")) == ["a[1].png"]
    (tree / "a[1].png").unlink()
    assert names(find("a[1].png")) == ["a1.png"]


def test_a_list_is_read_line_by_line_when_its_turn_comes() -> None:
    stdin = io.StringIO("one.png\n\nhé llo.png\r\nlast.png")
    sources = find_sources(["-"], stdin)
    assert (sources.count, sources.known, sources.live, sources.paced) == (None, (), False, True)
    assert not find("photos").paced
    iterator = iter(sources)
    assert next(iterator).name == "one.png"
    assert stdin.tell() == len("one.png\n")
    assert [source.name for source in iterator] == ["hé llo.png", "last.png"]


def test_a_list_of_names_that_nul_bytes_separate_is_reported() -> None:
    bad, good = find("-", stdin="a.png\0b.png\0\nc.png\n")
    assert (bad.name, good.name) == (r"a.png\0b.png\0", "c.png")
    with pytest.raises(ImageError, match="without -print0"):
        bad.load()


def test_a_name_counts_once_however_often_it_is_given() -> None:
    sources = find("photos/b.jpg", "photos", "photos/*.jpg", "photos/b.jpg")
    assert names(sources) == [ALL[1], ALL[0], *ALL[2:]]
    assert sources.count == 5
    assert names(find("photos/b.jpg", "-", stdin="c.png\nphotos/b.jpg\nc.png\n")) == [
        "photos/b.jpg",
        "c.png",
    ]


def test_a_missing_file_is_listed_and_its_load_says_so() -> None:
    (source,) = find("missing.png")
    assert source.name == "missing.png"
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        load_image(source.load())


def test_what_holds_no_image_is_refused_at_once(tree: Path) -> None:
    with pytest.raises(OptionError, match="empty: a folder without images"):
        find("photos", "empty")
    with pytest.raises(OptionError, match=r"photos/\*\.svg: matches no image"):
        find("photos/*.svg")


def test_what_holds_no_image_says_what_it_holds(tree: Path) -> None:
    """As a phone's photographs, which need a decoder that Pillow has not."""
    for name in ("1.heic", "2.HEIC", "3.dng", "README", ".hidden.heic"):
        (tree / "empty" / name).touch()
    (tree / "empty" / "below.heic").mkdir()
    with pytest.raises(OptionError) as caught:
        find("photos", "empty")
    held = "2 .heic, 1 without an ending, 1 .dng"
    assert str(caught.value) == f"empty: a folder without images (it has {held}), {WANTED}"
    globs = {"empty/*": held, "**/*.heic": "1 .heic", "**/[12]*": "2 .heic"}
    for pattern, kinds in globs.items():
        with pytest.raises(OptionError) as caught:
            find(pattern)
        assert str(caught.value) == f"{pattern}: matches no image (it has {kinds}), {WANTED}"


def test_what_a_glob_matches_besides_images_is_counted(tree: Path) -> None:
    for name in ("p.heic", "p.dng", "README", ".q.heic", "film.mp4"):
        (tree / "photos" / name).touch()
    sources = find("photos/[!f]*", "photos/**/*.webp")
    assert names(sources) == ["photos/a.PNG", "photos/b.jpg", "photos/x/c.webp"]
    assert sources.left_out == {".txt": 1, ".heic": 1, ".dng": 1, "": 1}


def test_a_folder_that_cannot_be_read_is_no_loss_in_silence(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:  # noqa: ANN401 - as os has it
        if str(path).endswith("y"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OptionError, match=r"photos/x/y: .*Permission denied"):
        find("photos")


def test_names_may_be_any_bytes(tree: Path) -> None:
    name = os.fsdecode(b"photos/\xe9\xff.png")
    Path(name).touch()
    assert name in names(find("photos"))


def test_a_camera_that_is_not_there_is_refused_at_once() -> None:
    pytest.importorskip("av")
    with pytest.raises(OptionError, match=r"camera:987: there is no /dev/video987"):
        find("camera:987")


def test_a_camera_is_live(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(frames, "camera_device", lambda number: tree / "photos")
    assert find("camera:0").live
    (tree / "camera:0").touch()
    assert not find("camera:0").live  # a file of that name


@pytest.mark.parametrize("path", ["clip.mp4", "camera:0"])
def test_without_pyav_the_pip_command_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma-edge\[video\]'"):
        find(path)
    listed = find("-", stdin="clip.mp4\n")
    with pytest.raises(MissingExtraError, match="video"):
        list(listed)


@pytest.mark.parametrize("every", [0.0, -1.0, float("nan"), float("inf")])
def test_the_spacing_of_frames_is_above_zero(every: float) -> None:
    with pytest.raises(OptionError, match="--every"):
        find_sources(["photos"], io.StringIO(), every)


@pytest.mark.parametrize(
    ("paths", "name", "relative"),
    [
        (["photos"], "photos/x/c.webp", "x/c.webp"),
        (["photos/"], "photos/a.PNG", "a.PNG"),
        (["photos/x"], "photos/x/y/d.bmp", "y/d.bmp"),
        (["photos/**/*.bmp"], "photos/x/y/d.bmp", "x/y/d.bmp"),
        (["photos/?/c.webp"], "photos/x/c.webp", "x/c.webp"),
        (["*/b.jpg"], "photos/b.jpg", "photos/b.jpg"),
        (["photos/b.jpg"], "photos/b.jpg", "b.jpg"),
        (["photos/b.jpg", "photos/x/c.webp"], "photos/x/c.webp", "x/c.webp"),
        (["missing.png", "photos"], "photos/b.jpg", "photos/b.jpg"),
        (["../photos.png"], "../photos.png", "photos.png"),
        (["./photos"], "./photos/b.jpg", "b.jpg"),
    ],
)
def test_a_name_is_relative_to_the_folder_that_was_given(
    paths: list[str], name: str, relative: str
) -> None:
    assert find(*paths).relative(name) == relative


def test_a_name_stays_where_there_is_no_one_folder(tree: Path) -> None:
    absolute = str(tree / "photos" / "b.jpg")
    mixed = find("photos", absolute)
    assert (mixed.root, mixed.relative(absolute)) == (None, absolute)
    assert find(str(tree / "photos")).relative(absolute) == "b.jpg"
    assert find("-", "photos/b.jpg").relative("photos/b.jpg") == "photos/b.jpg"


def test_the_spacing_of_frames_is_refused_where_there_are_none() -> None:
    with pytest.raises(OptionError, match="--every is about videos and cameras"):
        find_sources(["photos"], io.StringIO(), 2.0)
    assert find_sources(["-"], io.StringIO(), 2.0).count is None  # it may name a video
