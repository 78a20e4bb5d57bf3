"""By which names the server may be called, and from which pages.

A stranger's page in the browser of someone near the server can send requests to it. Such a page
gives itself away by its `Origin`, or, where its own name was made to lead to the server's address
(DNS rebinding), by the name in `Host`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from paligemma_edge.runtime.serve.errors import ApiError

_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
_PORTS = {"http": 80, "https": 443}


class HostCheck:
    """Refuses foreign names of the server and foreign pages."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = tuple(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is meant for this server; ApiError for all else."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if not all(map(self._is_ours, hosts)):  # none at all comes from no browser
            raise ApiError(
                403,
                "the server is not known by the name in the header Host; call it by its address, "
                "or start it with --allowed-host NAME",
                code="host_not_allowed",
                retry=False,
            )
        if not all(_is_same(origin, host) for origin in origins for host in hosts or [""]):
            raise ApiError(
                403,
                "requests from pages of other origins are refused",
                code="origin_not_allowed",
                retry=False,
            )
        await self._app(scope, receive, send)

    def _is_ours(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority.lower())
        if match is None:
            return False
        name = match["host"].strip("[]").removesuffix(".")
        if name == "localhost" or name.endswith(".local") or _is_address(name):
            return True
        return any(_fits(name, allowed) for allowed in self._allowed)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _fits(name: str, allowed: str) -> bool:
    if allowed.startswith("*"):
        return name.endswith(allowed[1:]) and len(name) >= len(allowed)
    return name == allowed


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of this origin was served under this name and port of ours."""
    scheme, _, authority = origin.lower().partition("://")
    page, ours = _AUTHORITY.fullmatch(authority), _AUTHORITY.fullmatch(host.lower())
    if scheme not in _PORTS or page is None or ours is None:
        return False
    ports = (int(match["port"] or _PORTS[scheme]) for match in (page, ours))
    return page["host"] == ours["host"] and len(set(ports)) == 1
