"""Where the server listens: loopback by default, a unix socket, or sockets that systemd opened.

Knows addresses and certificates. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.options import ServerOptions

_FIRST = 3  # descriptor that systemd passes
_MOST = 64
_BACKLOG = 512
_UMASK = 0o117  # a unix socket is its owner's and its group's: 0660
_PARENT = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@contextlib.contextmanager
def listening(
    options: ServerOptions, environment: MutableMapping[str, str] = os.environ
) -> Iterator[list[socket.socket]]:
    """Sockets that listen, until the end of the block; OptionError where one cannot be had.

    OptionError too where strangers could reach the server and nothing keeps them out.
    """
    with contextlib.ExitStack() as stack:
        sockets = _inherited(environment)
        if not sockets and options.unix is not None:
            sockets = [stack.enter_context(_unix_socket(options.unix))]
        elif not sockets:
            sockets = _tcp_sockets(options.host, options.port)
        for one in sockets:
            stack.enter_context(one)
        _require_keys(options, sockets)
        for one in sockets:
            one.listen(_BACKLOG)
            one.setblocking(False)
        yield sockets


def addresses(sockets: list[socket.socket], *, secure: bool) -> list[str]:
    """Where clients reach the sockets, as URLs or `unix:PATH`."""
    scheme = "https" if secure else "http"
    return [_url(scheme, one) for one in sockets]


def tls_context(options: ServerOptions) -> ssl.SSLContext | None:
    """What encrypts connections, None where nothing does; OptionError for unusable files."""
    if options.tls_cert is None or options.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key, password=_no_password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise OptionError(
            f"{options.tls_cert} and {options.tls_key} are no certificate and its key in PEM, "
            f"without a password ({_reason(error)})"
        ) from None
    return context


def _no_password() -> str:
    return ""  # asked for where a key is encrypted; a server has nobody to ask


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "unreadable"
    return (error.strerror if isinstance(error, OSError) else None) or "unreadable"


def _url(scheme: str, one: socket.socket) -> str:
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if one.family == socket.AF_INET6 else name[0]
    return f"{scheme}://{host}:{name[1]}"


def _tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, all on one port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name"
        raise OptionError(f"host {host!r} leads to no address: {reason}") from None
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, place) for family, _, _, _, place in found):
            port = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_tcp_socket(family, (address[0], port, *address[2:])))
    except OSError as error:
        for one in sockets:
            one.close()
        raise OptionError(_cannot_listen(f"{host} port {port}", error)) from None
    return sockets


def _tcp_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def _cannot_listen(where: str, error: OSError) -> str:
    todo = {
        errno.EADDRINUSE: "another program listens there; stop it or choose another",
        errno.EACCES: "that is not allowed; choose a port above 1023",
        errno.EADDRNOTAVAIL: "that is no address of this machine",
    }.get(error.errno or 0, error.strerror or "it failed")
    return f"cannot listen on {where}: {todo}"


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """A socket at a path, which is removed at the end; one that nobody listens on is replaced."""
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        before = os.umask(_UMASK)
        try:
            one.bind(os.fspath(path))
        except OSError as error:
            reason = error.strerror or str(error)  # "AF_UNIX path too long" has no number
            raise OptionError(f"cannot listen on {path}: {reason}") from None
        finally:
            os.umask(before)
        made = path.stat().st_ino
        try:
            yield one
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # `bind` says what is wrong with its folder
    if not stat.S_ISSOCK(mode):
        raise OptionError(f"{path} is there already and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError as error:
            raise OptionError(f"{path} is there already: {error.strerror}") from None
        else:
            raise OptionError(f"another program listens on {path}; stop it or choose another")


def _inherited(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Sockets that systemd opened for this process (sd_listen_fds(3)); none is the usual case."""
    owner, count, _ = (environment.pop(name, "") for name in _PARENT)
    if owner != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for descriptor in range(_FIRST, _FIRST + min(int(count), _MOST)):
        try:
            one = socket.socket(fileno=descriptor)
        except OSError:
            raise OptionError(f"LISTEN_FDS names descriptor {descriptor}, no socket") from None
        one.set_inheritable(False)
        if one.type != socket.SOCK_STREAM:
            raise OptionError(f"descriptor {descriptor} of LISTEN_FDS is no stream socket")
        sockets.append(one)
    return sockets


def _require_keys(options: ServerOptions, sockets: list[socket.socket]) -> None:
    """OptionError where strangers reach the server and nobody said that they may."""
    if options.api_keys is not None or options.no_auth:
        return
    for one in sockets:
        if not _is_local(one):
            raise OptionError(
                f"{one.getsockname()[0]} can be reached by other machines; give --api-keys FILE, "
                "or --no-auth to let anybody in"
            )


def _is_local(one: socket.socket) -> bool:
    if one.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(one.getsockname()[0].partition("%")[0]).is_loopback
