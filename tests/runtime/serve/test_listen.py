"""Where a server listens, and that strangers are kept out unless somebody let them in."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.listen import addresses, listening, tls_context
from paligemma_edge.runtime.serve.options import ServerOptions
from tests.helpers.serving import make_certificate


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("a:" + "0" * 64)
    return path


def test_it_is_loopback_unless_told(tmp_path: Path) -> None:
    with listening(ServerOptions(port=0), {}) as (one,):
        host, port = one.getsockname()
        assert host == "127.0.0.1"
        assert addresses([one], secure=False) == [f"http://127.0.0.1:{port}"]
        with socket.create_connection((host, port)):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_strangers_come_in_only_where_somebody_said_so(host: str, keys: Path) -> None:
    with (
        pytest.raises(OptionError, match="can be reached by other machines; give --api-keys"),
        listening(ServerOptions(host=host, port=0), {}),
    ):
        pass
    for options in ({"no_auth": True}, {"api_keys": keys}):
        with listening(ServerOptions(host=host, port=0, **options), {}) as sockets:
            assert sockets


def test_all_addresses_of_a_name_have_one_port() -> None:
    with listening(ServerOptions(host="localhost", port=0), {}) as sockets:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert all(url.startswith("http://") for url in addresses(sockets, secure=False))


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OptionError, match=f"port {port}: another program listens there"),
            listening(ServerOptions(port=port), {}),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no such name.invalid", "leads to no address"),
        ("", "leads to no address"),
        ("x" * 300, "leads to no address"),
        ("192.0.2.1", "no address of this machine"),
    ],
)
def test_an_address_of_nobody_is_told(host: str, message: str) -> None:
    with (
        pytest.raises(OptionError, match=message),
        listening(ServerOptions(host=host, port=0, no_auth=True), {}),
    ):
        pass


def test_a_unix_socket_is_of_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with listening(ServerOptions(unix=path), {}) as sockets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert addresses(sockets, secure=False) == [f"unix:{path}"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        with (
            pytest.raises(OptionError, match="another program listens on"),
            listening(ServerOptions(unix=path), {}),
        ):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with listening(ServerOptions(unix=path), {}), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_file_in_the_place_of_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("photos")
    link = tmp_path / "link"
    link.symlink_to(path)
    for place in (path, link):
        with (
            pytest.raises(OptionError, match="is no socket; choose another path"),
            listening(ServerOptions(unix=place), {}),
        ):
            pass
    assert path.read_text() == "photos"
    for place in (tmp_path / "none" / "a", tmp_path / ("x" * 200)):
        with (
            pytest.raises(OptionError, match="cannot listen on"),
            listening(ServerOptions(unix=place), {}),
        ):
            pass


INHERITS = """
import os, socket, sys
from paligemma_edge.runtime.serve.listen import addresses, listening
from paligemma_edge.runtime.serve.options import ServerOptions
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
with listening(ServerOptions(port=0)) as sockets:
    print(len(sockets), sockets[0].fileno(), *addresses(sockets, secure=False))
    print("LISTEN_FDS" in os.environ, [os.get_inheritable(one.fileno()) for one in sockets])
"""


def inherits(one: socket.socket, shift: int = 0) -> tuple[str, str]:
    def give() -> None:
        os.dup2(one.fileno(), 3)

    done = subprocess.run(
        [sys.executable, "-c", INHERITS, str(shift)],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
        preexec_fn=give,
        close_fds=False,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, done.stderr


def test_sockets_of_systemd_are_used_if_they_are_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        said, _ = inherits(one)
        assert said == f"1 3 http://127.0.0.1:{port}\nFalse [False]\n"
        said, _ = inherits(one, shift=1)  # those of another process
        assert f":{port}" not in said
    with socket.create_server(("0.0.0.0", 0)) as one:
        _, wrong = inherits(one)
        assert "can be reached by other machines" in wrong
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        _, wrong = inherits(one)
        assert "is no stream socket" in wrong


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(cert, key)
    yield cert, key


def test_a_certificate_and_its_key_are_taken(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    assert tls_context(ServerOptions(tls_cert=cert, tls_key=key)) is not None
    assert tls_context(ServerOptions()) is None


def test_other_files_are_refused(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    other = tmp_path / "other.pem"
    make_certificate(tmp_path / "c.pem", other)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "ec", "-aes128", "-passout", "pass:secret"]
    subprocess.run([*command, "-in", key, "-out", locked], check=True, capture_output=True)
    garbage = tmp_path / "garbage"
    garbage.write_text("none")
    for pair in ((cert, other), (cert, locked), (garbage, key), (cert, tmp_path / "none")):
        with pytest.raises(OptionError, match="are no certificate and its key in PEM"):
            tls_context(ServerOptions(tls_cert=pair[0], tls_key=pair[1]))
    with pytest.raises(OptionError, match="go together"):
        ServerOptions(tls_cert=cert)
