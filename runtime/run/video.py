"""Frames of a video file or a camera, through PyAV.

Knows times and pixels. Knows nothing of names, nor of what is done with an image.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import ImageError, MissingExtraError
from paligemma_edge.runtime.images.load import image_label
from paligemma_edge.runtime.run.decode_errors import as_image_errors

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

Frame: TypeAlias = tuple[float, NDArray[np.uint8]]  # seconds, [height, width, 3]

# The file's contents decide its format, and formats that name other files are left out.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_TITLES = "replace"  # texts in any encoding: they are not read
_WANTED = "wanted a video in MP4, MOV, MKV, WebM or AVI"


def check_installed(what: str) -> None:
    """MissingExtraError where PyAV is not installed."""
    try:
        import av  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingExtraError(
            f"{what} needs the package av, which is not installed; "
            "run: pip install 'paligemma-edge[video]'"
        ) from None


def video_frames(path: str, every: float) -> Iterator[Frame]:
    """Upright frames of a video file, the first and then one each `every` seconds of it.

    ImageError of one line where the file, or what follows in it, cannot be read.
    """
    label = image_label(path)
    if not Path(path).is_file():
        raise ImageError(f"{label}: no such file; check the path (addresses are not fetched)")
    import av

    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    with (
        as_image_errors(path, _WANTED),
        Path(path).open("rb") as file,
        av.open(file, "r", options=options, metadata_errors=_TITLES) as container,
    ):
        yield from spaced(_decoded(container, label), every)


def camera_device(number: int) -> Path:
    """Where Linux has a camera."""
    return Path(f"/dev/video{number}")


def camera_frames(number: int, every: float) -> Iterator[Frame]:
    """The newest frame of a camera whenever one is asked for, at most one each `every` seconds."""
    yield from newest(lambda: _camera(number), every)


def spaced(frames: Iterator[Frame], every: float) -> Iterator[Frame]:
    """The first frame, and then the first one at or after each multiple of `every` seconds."""
    due = -math.inf
    for seconds, pixels in frames:
        if seconds >= due:
            yield seconds, pixels
            # A frame at 0.9999 s is the one of second 1: clocks of videos are coarse.
            due = (math.floor(seconds / every + 1e-3) + 1) * every - 1e-3 * every if every else due


def newest(
    open_frames: Callable[[], Iterator[Frame]], every: float = 0.0
) -> Generator[Frame, None, None]:
    """Read frames in a thread as they come and hand out the latest; those between are dropped."""
    latest = _Latest()
    thread = threading.Thread(target=latest.fill, args=(open_frames,), daemon=True)
    thread.start()
    try:
        yield from spaced(latest.frames(), every)
    finally:
        latest.stop()


@dataclass
class _Latest:
    """The latest frame, which a thread replaces until the reader takes it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    frame: Frame | None = None
    error: BaseException | None = None
    ended: bool = False

    def fill(self, open_frames: Callable[[], Iterator[Frame]]) -> None:
        error: BaseException | None = None
        try:
            for frame in open_frames():
                if self.ended:
                    return
                with self.changed:
                    self.frame = frame
                    self.changed.notify_all()
        except BaseException as caught:  # handed to the reader
            error = caught
        with self.changed:
            self.error, self.ended = error, True
            self.changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.frame is not None or self.ended)
                frame, self.frame = self.frame, None
            if frame is None:
                break
            yield frame
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.ended = True


def _camera(number: int) -> Iterator[Frame]:
    import av

    device = camera_device(number)
    label = f"camera:{number}"
    wanted = f"wanted a camera that Video4Linux can read at {device}"
    with as_image_errors(label, wanted), av.open(str(device), "r", format="v4l2") as container:
        yield from _decoded(container, label)


def _decoded(container: InputContainer, label: str) -> Iterator[Frame]:
    """All frames, upright, in seconds from the start."""
    if not container.streams.video:
        raise ImageError(f"{label}: has no frames, {_WANTED}")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    first: float | None = None
    for number, frame in enumerate(container.decode(stream)):
        seconds = number / float(stream.average_rate or 25) if frame.time is None else frame.time
        first = seconds if first is None else first
        yield seconds - first, _upright(frame)


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
