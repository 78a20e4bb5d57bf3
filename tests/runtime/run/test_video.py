from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.run.sources import find_sources
from paligemma_edge.runtime.run.video import Frame, camera_frames, newest, spaced, video_frames

av = pytest.importorskip("av")

RATE, COUNT = 10, 35
WAIT = 60


def image(number: int) -> NDArray[np.uint8]:
    """Its upper half is red, its blue tells the number."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :, 0] = 240
    pixels[..., 2] = 7 * number
    return pixels


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_come_at_their_seconds(clip: Path) -> None:
    found = list(video_frames(str(clip), 1.0))
    assert [seconds for seconds, _ in found] == [0, 1, 2, 3]
    for seconds, pixels in found:
        assert pixels.dtype == np.uint8
        assert pixels.shape == (48, 64, 3)
        wanted = image(round(seconds * RATE)).astype(int)
        assert np.abs(pixels - wanted).mean() < 12  # the codec and its colours lose some
    assert len(list(video_frames(str(clip), 0.3))) == 12
    assert len(list(video_frames(str(clip), 0.001))) == COUNT
    assert len(list(video_frames(str(clip), 100))) == 1


def test_seconds_are_counted_from_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(RATE + 1):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts = number + 75
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [seconds for seconds, _ in video_frames(str(path), 1.0)] == [0, 1]


def test_a_source_is_named_after_its_second(clip: Path) -> None:
    sources = find_sources([str(clip)], io.StringIO(), 1.5)
    assert sources.count is None
    assert [source.name for source in sources] == [
        f"{clip}@00000{s}.{ms}00s" for s, ms in [(0, 0), (1, 5), (3, 0)]
    ]
    assert len(list(find_sources([str(clip)], io.StringIO()))) == 4
    assert len(list(find_sources(["-"], io.StringIO(f"{clip}\n")))) == 4


@pytest.mark.parametrize(
    ("matrix", "red"),
    [
        ((0, 1, -1, 0), (slice(None), slice(24, None))),  # a quarter turn to the right
        ((-1, 0, 0, -1), (slice(24, None), slice(None))),
        ((0, -1, 1, 0), (slice(None), slice(None, 24))),
    ],
)
def test_a_clip_that_is_on_its_side_is_set_upright(
    clip: Path, matrix: tuple[int, ...], red: tuple[slice, slice]
) -> None:
    data = bytearray(clip.read_bytes())
    place = data.find(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8  # ISO 14496-12, 8.3.2
    a, b, c, d = (number << 16 for number in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    _, pixels = next(video_frames(str(clip), 1.0))
    where = np.zeros(pixels.shape[:2], bool)
    where[red] = True
    assert pixels[where][:, 0].mean() > 200
    assert pixels[~where][:, 0].mean() < 40


def refused(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        list(video_frames(str(path), 1.0))
    (line,) = str(caught.value).splitlines()
    return line


def test_what_is_not_a_video_is_reported_in_one_line(clip: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4: cannot be read (Invalid data" in refused(tmp_path / "text.mp4")
    (tmp_path / "empty.mkv").touch()
    assert "empty.mkv" in refused(tmp_path / "empty.mkv")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:900])
    assert "cut.mp4" in refused(cut)
    (source,) = find_sources([str(cut)], io.StringIO())
    assert source.name == str(cut)
    with pytest.raises(ImageError):
        source.load()


@pytest.mark.parametrize(
    "error",
    [
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
        struct.error("unpack"),
        RecursionError(),
        SystemError("null argument"),
        MemoryError(),
        KeyError("codec"),
        OSError(5, "Input/output error"),
    ],
)
def test_whatever_a_decoder_raises_is_the_error_of_that_file(
    clip: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(av, "open", fail)
    assert len(refused(clip)) < 300
    names = [source.name for source in find_sources([str(clip), "a.png"], io.StringIO())]
    assert names == [str(clip), "a.png"]


def test_a_video_without_images(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "sound.mkv: has no frames" in refused(path)


def test_a_list_of_other_files_is_no_video(clip: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.mp4"
    listing.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clip}\n")
    assert "Invalid data" in refused(listing)


def test_a_clip_may_have_any_name(clip: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/http:\xff.mp4"))
    clip.rename(path)
    assert len(list(video_frames(str(path), 1.0))) == 4


def test_a_camera_that_is_not_there_is_reported_in_one_line() -> None:
    with pytest.raises(ImageError, match=r"camera:987: cannot be read \(No such file") as caught:
        next(camera_frames(987, 0.0))
    assert "/dev/video987" in str(caught.value)


def numbered(count: int) -> Iterator[Frame]:
    for number in range(count):
        yield number / RATE, np.full((2, 2, 3), number, np.uint8)


def test_spacing_is_that_of_the_clock_whatever_the_clip_s() -> None:
    jittered = ((n / 30 + (0.0009 if n % 2 else -0.0009), np.zeros(3, np.uint8)) for n in range(91))
    assert [round(seconds) for seconds, _ in spaced(jittered, 1.0)] == [0, 1, 2, 3]
    assert len(list(spaced(numbered(50), 0.0))) == 50


def test_a_camera_gives_its_newest_frame() -> None:
    asked, filmed = threading.Event(), threading.Event()

    def film() -> Iterator[Frame]:
        frames = numbered(10)
        yield next(frames)
        asked.wait(WAIT)
        yield from frames
        filmed.set()
        asked.clear()
        asked.wait(WAIT)

    latest = newest(film)
    assert next(latest)[1].max() == 0
    asked.set()
    assert filmed.wait(WAIT)
    assert next(latest)[1].max() == 9  # those between were missed
    asked.set()
    assert list(latest) == []


def test_an_error_of_the_camera_reaches_the_one_who_reads() -> None:
    def film() -> Iterator[Frame]:
        raise ImageError("unplugged")
        yield

    with pytest.raises(ImageError, match="unplugged"):
        list(newest(film))


def test_the_camera_is_let_go_when_nobody_reads_any_more() -> None:
    released, go = threading.Event(), threading.Event()

    def film() -> Iterator[Frame]:
        try:
            while True:
                yield from numbered(2)
                go.wait(WAIT)
        finally:
            released.set()

    latest = newest(film)
    next(latest)
    latest.close()
    go.set()
    assert released.wait(WAIT)
