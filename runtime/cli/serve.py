"""The command `serve`: arguments become `ServerOptions`, signals let the server end."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma_edge.runtime.cli.device_options import (
    add_bundle,
    add_device_options,
    add_max_batch_size,
    add_max_length,
    load_options,
)
from paligemma_edge.runtime.cli.signals import ending_on_signals
from paligemma_edge.runtime.cli.verbosity import RecordHandler, TimedHandler, handled_by
from paligemma_edge.runtime.validation import check_bytes, check_count, check_pixels

if TYPE_CHECKING:
    from paligemma_edge.runtime.serve.options import ServerOptions

# Options that have another name than the server's own.
_COUNTS = {
    "max_batch_size": "--max-batch-size",
    "max_waiting": "--max-queue",
    "max_waiting_per_client": "--max-queue-per-client",
}

_EPILOG = """\
A question may be asked as OpenAI's clients ask, at /v1/chat/completions; at /v1/detect, /v1/caption
and the like; or on the page, at /. /openapi.json describes all.

A line of --api-keys is name:sha256, where sha256 is what this prints:
  printf %s "$KEY" | sha256sum

On SIGTERM, SIGINT or SIGHUP no more questions are taken, and those that were end; a second signal
ends the server at once. systemd's notifications, watchdog and sockets are used where it gives them.

examples:
  paligemma-edge serve mix.bundle
  paligemma-edge serve mix.bundle --host 0.0.0.0 --api-keys keys --tls-cert a.pem --tls-key a.key
  paligemma-edge serve mix.bundle --unix /run/paligemma.sock --no-page --log json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = "%(prog)s [options] BUNDLE"
    parser.description = "Answer over HTTP: an OpenAI-compatible API, boxes and masks, and a page."
    parser.epilog = _EPILOG
    add_bundle(parser)
    _add_address(parser.add_argument_group("address"))
    _add_access(parser.add_argument_group("who may ask"))
    _add_answers(parser.add_argument_group("answers"))
    _add_limits(parser.add_argument_group("limits"))
    group = add_device_options(parser)
    add_max_batch_size(group, "answers at a time; default: 4. 1 repeats answers to the last bit")
    add_max_length(group)
    parser.set_defaults(command=_serve)


def _add_address(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", metavar="NAME", help="name or address to listen on; default: 127.0.0.1")
    add("--port", type=int, metavar="N", help="port; default: 8000, and 0 for any that is free")
    add("--unix", type=Path, metavar="PATH", help="listen on this unix socket instead")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate in PEM, for HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="its key in PEM, without a password")


def _add_access(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--api-keys", type=Path, metavar="FILE", help="let in who has one of these keys; see below")
    add(
        "--no-auth",
        action="store_true",
        default=None,
        help="let in anybody, from other machines too",
    )
    add(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        metavar="NAME",
        help="a name that clients may call this machine by, besides addresses, localhost and "
        "*.local; repeatable",
    )


def _add_answers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--default-task",
        metavar="WORDS",
        help="what goes before chat prompts without a task word, such as 'answer en'",
    )
    add(
        "--strict-chat",
        action="store_true",
        default=None,
        help="refuse chats with a system message or a history, which the model does not read",
    )
    add("--no-page", dest="page", action="store_false", default=None, help="serve no page")
    add(
        "--log",
        dest="log_format",
        choices=["text", "json"],
        help="form of the lines on standard error; default: text",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--max-queue",
        dest="max_waiting",
        type=int,
        metavar="N",
        help="questions that wait at most; default: 64",
    )
    add(
        "--max-queue-per-client",
        dest="max_waiting_per_client",
        type=int,
        metavar="N",
        help="those of one key, or without keys of one address; default: 32",
    )
    add(
        "--max-queue-memory",
        dest="max_waiting_bytes",
        metavar="SIZE",
        help="memory of their images; default: 256MiB",
    )
    add("--max-request", dest="max_body", metavar="SIZE", help="of a request; default: 20MiB")
    add("--max-images", type=int, metavar="N", help="images of one question; default: 4")
    add(
        "--max-pixels",
        metavar="N",
        help="width x height of the largest image that is read, such as 50M; default: 40M",
    )
    add("--max-connections", type=int, metavar="N", help="open connections; default: 512")
    add("--timeout", type=float, metavar="SECONDS", help="for an answer; default: 120")
    add(
        "--drain",
        type=float,
        metavar="SECONDS",
        help="for answers that have begun, when the server is stopped; default: 30",
    )
    add(
        "--steps-between-prefills",
        type=int,
        metavar="N",
        help="steps that running answers take before the next question is read; default: 4",
    )


def _serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes; 0 when all answers have ended."""
    from paligemma_edge.runtime.loading.loaded_model import load_model
    from paligemma_edge.runtime.serve.server import Server, model_id_of

    server_options = _server_options(options)
    load = load_options(options)
    load["max_batch_size"] = server_options.slots
    load["max_pixels"] = server_options.max_pixels
    server = Server(
        lambda: load_model(options.bundle, options.device, options.variant, **load),
        model_id_of(options.bundle),
        server_options,
    )
    with handled_by(_log_handler(server_options)), ending_on_signals(server.stop):
        server.run()
    return 0


def _server_options(arguments: argparse.Namespace) -> ServerOptions:
    """What was given; what was not has the server's own default."""
    from paligemma_edge.runtime.serve.options import ServerOptions

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    for name, option in _COUNTS.items():
        if name in given:
            check_count(option, given[name])
    given["slots"] = given.pop("max_batch_size", ServerOptions.slots)
    given["allowed_hosts"] = tuple(given.get("allowed_hosts", ()))
    for name, option in (
        ("max_waiting_bytes", "--max-queue-memory"),
        ("max_body", "--max-request"),
    ):
        if name in given:
            given[name] = check_bytes(option, given[name])
    if "max_body" in given:
        given["max_bodies"] = max(ServerOptions.max_bodies, given["max_body"])
    if "max_pixels" in given:
        given["max_pixels"] = check_pixels("--max-pixels", given["max_pixels"])
    known = ServerOptions.__dataclass_fields__
    return ServerOptions(**{name: value for name, value in given.items() if name in known})


def _log_handler(options: ServerOptions) -> logging.Handler:
    """What writes the log: each line with its time, or one JSON object each."""
    from paligemma_edge.runtime.serve.request_log import JsonLines

    return RecordHandler(JsonLines()) if options.log_format == "json" else TimedHandler()
