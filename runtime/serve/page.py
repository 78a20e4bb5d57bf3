"""The page for people and the sample images: files of the package, read once, sent from memory.

Nothing of a request but its path's exact name chooses what is sent, so no path leads out of the
package. The page asks no other server for anything: its policy forbids the browser to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_INDEX = "index.html"
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "json": "application/json",
        "png": "image/png",
        "svg": "image/svg+xml",
    }
)
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
            "form-action 'self'; frame-ancestors 'none'; object-src 'none'"
        ),
        "cache-control": "no-cache",  # kept, and asked about each time: 304 while it is the same
        "permissions-policy": "camera=(self), microphone=(), geolocation=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)


def page_routes() -> list[Route]:
    """Routes of the page, `/` and `/page/*`, and of the sample images, `/samples/*`.

    Returns:
        Routes for GET and HEAD; every file is in memory by now, half a megabyte in all.

    Example:
        >>> app = Starlette(routes=page_routes())
    """
    page = files("paligemma_edge.runtime.serve") / "page"
    samples = files("paligemma_edge.sample_images")
    return [
        Route("/", _File.read(page / _INDEX).answer),
        *(Route(f"/page/{path.name}", _File.read(path).answer) for path in _served(page)),
        *(Route(f"/samples/{path.name}", _File.read(path).answer) for path in _served(samples)),
    ]


def _served(folder: Traversable) -> Iterator[Traversable]:
    """The files of a folder that are for a browser, but for the index, which has its own path."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        hidden = path.name.startswith(".") or path.name == _INDEX
        if path.is_file() and not hidden and _extension(path) in _TYPES:
            yield path


def _extension(path: Traversable) -> str:
    return path.name.rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class _File:
    """A file as it is sent."""

    content: bytes
    headers: Mapping[str, str]

    @classmethod
    def read(cls, path: Traversable) -> _File:
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, {**_HEADERS, "content-type": _TYPES[_extension(path)], "etag": tag})

    async def answer(self, request: Request) -> Response:
        """The file, or word that the browser's own copy is still the same."""
        if _names(request.headers.get("if-none-match", ""), self.headers["etag"]):
            kept = {name: value for name, value in self.headers.items() if name != "content-type"}
            return Response(status_code=304, headers=kept)
        return Response(self.content, headers=dict(self.headers))


def _names(condition: str, tag: str) -> bool:
    """Whether an If-None-Match names a tag (RFC 9110, 13.1.2: weak tags are compared too)."""
    tags = [one.strip().removeprefix("W/") for one in condition.split(",")]
    return tag in tags or tags == ["*"]
