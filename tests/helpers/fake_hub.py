"""A local Hugging Face Hub, for the real huggingface_hub to talk to.

Answers the HTTP requests of `snapshot_download`: the commit of a revision, the list of its files,
and the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ROUTES = re.compile(
    r"/api/models/(?P<info>[^/]+/[^/]+)/revision/(?P<revision>.+)"
    r"|/api/models/(?P<tree>[^/]+/[^/]+)/tree/.+"
    r"|/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)"
)


@dataclass
class Repository:
    """One repository of the Hub."""

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None  # gated: its files need this token
    private: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(self.files.values())).hexdigest()


@dataclass
class Hub:
    """The repositories by name, and the files that were downloaded."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    status: int = 0  # if not 0, every request fails with this HTTP status
    address: str = ""
    requests: int = 0

    def reset(self) -> None:
        """Forget all repositories and what was asked for."""
        self.repositories.clear()
        self.sent.clear()
        self.status = self.requests = 0

    def add(self, name: str, folder: Path, *more: str, **options: object) -> Repository:
        """Add a repository with the files of a folder, and `more` files that contain their name."""
        paths = (path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        files |= {other: other.encode() for other in more}
        self.repositories[name] = Repository(files, **options)  # type: ignore[arg-type]
        return self.repositories[name]


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def keep(cache: Path, name: str, folder: Path, commit: str = "0" * 40, *, inner: str = "") -> Path:
    """A repository as huggingface_hub keeps it: blobs, a snapshot of links to them, a reference.

    The folder's files are below `inner` in it → where they then are in the snapshot.
    """
    store = cache / f"models--{name.replace('/', '--')}"
    kept = store / "snapshots" / commit / inner
    for needed in (kept, store / "blobs", store / "refs"):
        needed.mkdir(parents=True)
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        blob, link = store / "blobs" / str(number), kept / path.relative_to(folder)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (store / "refs" / "main").write_text(commit)
    return kept


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests += 1
        route = _ROUTES.fullmatch(unquote(urlsplit(self.path).path))
        if route is None:  # huggingface_hub requests more, and works without it
            self._send_error(404, "", "")
            return
        name = route["info"] or route["tree"] or route["repository"]
        repository = self.hub.repositories.get(name)
        if self.hub.status:
            self._send_error(self.hub.status, "", "enable access in your token's settings")
        elif repository is None or repository.private:
            self._send_error(401, "RepoNotFound", "Invalid username or password.")
        elif route["info"]:
            self._send_revision(name, repository, route["revision"])
        elif route["tree"]:
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": _digest(data)}
                for file, data in repository.files.items()
            ]
            self._send(json.dumps(entries).encode())
        else:
            self._send_file(repository, route["file"])

    def _send_revision(self, name: str, repository: Repository, revision: str) -> None:
        if revision in repository.revisions:
            self._send(json.dumps({"id": name, "sha": repository.commit}).encode())
        else:
            self._send_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _send_file(self, repository: Repository, file: str) -> None:
        token = self.headers.get("authorization")
        if repository.token is not None and token != f"Bearer {repository.token}":
            self._send_error(403 if token else 401, "GatedRepo", "Access is restricted.")
            return
        data = repository.files[file]
        if self.command == "GET":
            self.hub.sent.append(file)
        self._send(data, ETag=f'"{_digest(data)}"', X_Repo_Commit=repository.commit)

    def _send_error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
