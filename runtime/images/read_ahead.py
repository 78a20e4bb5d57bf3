"""Images are read and preprocessed in threads before they are needed.

Knows order and depth. The images themselves are taken by the thread that asks for results, since
a caller's generator may be at home there alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.batch import ImageBatch, ImageReader
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.timing import Stopwatch

R = TypeVar("R")


def read_ahead(
    images: Iterable[ImageInput], reader: ImageReader, depth: int
) -> Generator[ImageBatch | ImageError, None, None]:
    """Read images, at most `depth` of them early; yield in order, each alone.

    An image that cannot be read is its error, which names its place as `images[2]: ...`. An error
    of the iterator itself is raised after the images before it.
    """
    waiting: deque[Future[ImageBatch | ImageError]] = deque()
    errors: list[Exception] = []
    with ThreadPoolExecutor(max(1, depth), thread_name_prefix="read-ahead") as pool:
        try:
            for number, image in enumerate(_until_error(images, errors)):
                waiting.append(_begin(pool, image, number, reader))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    for error in errors:
        raise error


def _until_error(images: Iterable[ImageInput], errors: list[Exception]) -> Iterator[ImageInput]:
    """The images that the caller's iterator gives before it fails, and the error if it does."""
    try:
        for image in images:  # noqa: UP028 - `yield from` would close the caller's generator
            yield image
    except Exception as error:
        errors.append(error)


def _begin(
    pool: ThreadPoolExecutor, image: ImageInput, number: int, reader: ImageReader
) -> Future[ImageBatch | ImageError]:
    """Read an image in a thread, as it is now: its giver may change or close it next."""

    def read(image: ImageInput) -> ImageBatch:
        return reader.read([image], Stopwatch())

    def named(work: Callable[[ImageInput], R], image: ImageInput) -> R | ImageError:
        try:
            return work(image)
        except ImageError as error:
            return ImageError(f"images[{number}]: {error}")

    held = named(reader.hold, image)
    if isinstance(held, ImageError):
        failed: Future[ImageBatch | ImageError] = Future()
        failed.set_result(held)
        return failed
    return pool.submit(named, read, held)
