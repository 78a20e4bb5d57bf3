"""A Hugging Face Hub of this machine alone, for the real huggingface_hub to talk to.

It speaks as much of the Hub's HTTP as `snapshot_download` asks for: what a revision is, which
files it has, and the files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ASKED = re.compile(
    r"/api/models/(?P<info>[^/]+/[^/]+)/revision/(?P<revision>.+)"
    r"|/api/models/(?P<tree>[^/]+/[^/]+)/tree/.+"
    r"|/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)"
)


@dataclass
class Repository:
    """What a name on the Hub stands for."""

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None  # gated: nobody reads its files without
    private: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(self.files.values())).hexdigest()


@dataclass
class Hub:
    """The repositories by name, and which files were asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    refusal: int = 0  # the status that all are refused with
    address: str = ""

    def add(self, name: str, folder: Path, *more: str, **options: object) -> Repository:
        """The files of a folder, and some that only have a name."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        files |= {other: other.encode() for other in more}
        self.repositories[name] = Repository(files, **options)  # type: ignore[arg-type]
        return self.repositories[name]


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def keep(cache: Path, name: str, folder: Path, commit: str = "0" * 40) -> Path:
    """A repository as huggingface_hub keeps it: blobs, a snapshot of links to them, a reference."""
    store = cache / f"models--{name.replace('/', '--')}"
    snapshot = store / "snapshots" / commit
    for made in (snapshot, store / "blobs", store / "refs"):
        made.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        shutil.copy(path, store / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (store / "refs" / "main").write_text(commit)
    return snapshot


class _Answers(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        asked = _ASKED.fullmatch(unquote(urlsplit(self.path).path))
        if asked is None:  # huggingface_hub asks for more, and does without it
            self._refuse(404, "", "")
            return
        name = asked["info"] or asked["tree"] or asked["repository"]
        repository = self.hub.repositories.get(name)
        if self.hub.refusal:
            self._refuse(self.hub.refusal, "", "enable access in your token's settings")
        elif repository is None or repository.private:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif asked["info"]:
            self._tell_revision(name, repository, asked["revision"])
        elif asked["tree"]:
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": _digest(data)}
                for file, data in repository.files.items()
            ]
            self._give(json.dumps(entries).encode())
        else:
            self._give_file(repository, asked["file"])

    def _tell_revision(self, name: str, repository: Repository, revision: str) -> None:
        if revision in repository.revisions:
            self._give(json.dumps({"id": name, "sha": repository.commit}).encode())
        else:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _give_file(self, repository: Repository, file: str) -> None:
        given = self.headers.get("authorization")
        if repository.token is not None and given != f"Bearer {repository.token}":
            self._refuse(403 if given else 401, "GatedRepo", "Access is restricted.")
            return
        data = repository.files[file]
        if self.command == "GET":
            self.hub.given.append(file)
        self._give(data, ETag=f'"{_digest(data)}"', X_Repo_Commit=repository.commit)

    def _refuse(self, status: int, code: str, words: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", words)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _give(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
