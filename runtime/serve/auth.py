"""Who may ask: API keys, of which the server knows digests alone.

Every route needs a key where there are keys, but for those that tell whether the server is well and
the files of the page, which asks for a key itself.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.errors import ApiError

WITHOUT_KEY = frozenset({"/health", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
_PAGE = re.compile(r"/|/(page|samples)/.*", re.DOTALL)
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-fA-F]{64})", re.ASCII)
_BEARER = re.compile(rb"bearer +(.+)", re.IGNORECASE | re.DOTALL)
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class ApiKeys:
    """Names of clients by the SHA-256 of their keys."""

    names: Mapping[bytes, str]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read `name:sha256` lines; OptionError where the file holds anything else.

        Empty lines and those that begin with `#` are skipped. A name may have several keys, so
        that one can be replaced without a pause.
        """
        names = {}
        for number, line in enumerate(_text(path).splitlines(), 1):
            if not (entry := line.strip()) or entry.startswith("#"):
                continue
            match = _LINE.fullmatch(entry)
            if match is None:  # the line is not shown: it may be a key itself
                raise OptionError(
                    f"{path}: line {number} is no name:sha256; the second part is what "
                    '`printf %s "$KEY" | sha256sum` prints, 64 hexadecimal digits'
                )
            names[bytes.fromhex(match[2])] = match[1]
        if not names:
            raise OptionError(
                f"{path} holds no key, so nobody would be let in; add a line name:sha256"
            )
        return cls(names)

    def client(self, headers: Headers) -> str | None:
        """The name of the client whose key a request brings; None where there is none.

        All digests are compared, in constant time, so that the time taken tells nothing of them.
        """
        given = headers.getlist("authorization")
        match = _BEARER.fullmatch(given[0].strip().encode("latin-1")) if len(given) == 1 else None
        digest = hashlib.sha256(match[1] if match else b"").digest()
        found = None
        for known, name in self.names.items():
            if hmac.compare_digest(known, digest) and match is not None:
                found = name
        return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise OptionError(f"{path} is larger than 1 MiB, wanted a file of API keys")
        return data.decode()
    except OSError as error:
        raise OptionError(
            f"{path}, the file of API keys, cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise OptionError(f"{path} is no text, wanted lines name:sha256") from None


def client_of(request: Request) -> str:
    """Whose request it is: the name of its key, or without keys its address."""
    client: str = request.state.client
    return client


class Authentication:
    """Refuses what brings no known key, and notes whose request it is."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on who may ask; ApiError for all others."""
        client = _address(scope)
        if self._keys is not None and not _needs_no_key(scope):
            name = self._keys.client(Headers(scope=scope))
            if name is None:
                raise ApiError(
                    401,
                    "no valid API key was given; send the header 'Authorization: Bearer KEY'",
                    type="authentication_error",
                    code="invalid_api_key",
                    retry=False,
                )
            client = name
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)


def _needs_no_key(scope: Scope) -> bool:
    path = scope["path"]
    if path in WITHOUT_KEY:
        return True
    return scope["method"] in ("GET", "HEAD") and _PAGE.fullmatch(path) is not None


def _address(scope: Scope) -> str:
    """The address of the client's machine; on a unix socket all are one."""
    client = scope.get("client")
    return client[0] if client else "local"
