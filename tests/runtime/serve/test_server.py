"""The life of a server: it loads, is tested, answers, drains. Real connections to a real model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import Golden, OriginalAnswer, pixel_grid
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.scheduling.job_slots import JobSlots
from paligemma_edge.runtime.scheduling.scheduler import Scheduler
from paligemma_edge.runtime.serve.auth import WITHOUT_KEY
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.server import Server, model_id_of
from tests.helpers.serving import (
    SECONDS,
    Address,
    Log,
    Reply,
    logged,
    make_certificate,
    read_all,
    running_server,
)

IMAGE = Path("samples/images/03.png")


def caption(address: Address, query: str = "") -> Reply:
    headers = {"Content-Type": "image/png"}
    return address.ask(f"/v1/caption{query}", "POST", headers=headers, body=IMAGE.read_bytes())


@pytest.fixture(scope="module")
def plain(shapes_bundle: Path) -> Iterator[Address]:
    with running_server(shapes_bundle) as running:
        yield running.address


class Gate:
    """Holds the engine before each step until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        step = Scheduler._step

        def held(scheduler: Scheduler, slots: JobSlots) -> None:
            self.reached.set()
            assert self.go_on.wait(SECONDS)
            step(scheduler, slots)

        monkeypatch.setattr(Scheduler, "_step", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.go_on.set()


@pytest.fixture
def log() -> Iterator[Log]:
    with logged() as log:
        yield log


def until(address: Address, path: str, status: int) -> Reply:
    while (reply := address.ask(path)).status != status:
        pass
    return reply


def test_it_lives_before_it_is_ready(shapes_bundle: Path, log: Log) -> None:
    may_load = threading.Event()

    def load() -> LoadedModel:
        assert may_load.wait(SECONDS)
        return load_model(shapes_bundle, "cpu", max_batch_size=1)

    server = Server(load, "shapes", ServerOptions(port=0))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(server.run)
        address = Address(int(log.wait_for("listening on").rpartition(":")[2]))
        assert address.ask("/livez").json == {"status": "ok"}
        assert address.ask("/v2/health/live").json == {"live": True}
        for path in ("/health", "/readyz", "/v2/health/ready", "/v1/models", "/", "/metrics"):
            reply = address.ask(path)
            assert (reply.status, reply.code) == (503, "loading")
            assert int(reply.headers["retry-after"]) > 0
        assert not server.stop()  # nothing but the end of the process ends it now
        server._wanted_end.clear()
        may_load.set()
        assert until(address, "/health", 200).json == {"status": "ok"}
        assert address.ask("/v2/health/ready").json == {"ready": True}
        assert server.stop()
        running.result(SECONDS)
    with pytest.raises(ConnectionRefusedError):
        address.ask("/livez")


def with_golden(bundle: Path, model: PaliGemma, change: int) -> None:
    """Make the bundle's own answer its golden one, but for the bits of its last token."""
    image = IMAGE.read_bytes()
    said, loaded = model.generate(image, "caption en", max_new_tokens=4), model._loaded
    tokens = (*said.token_ids[:-1], said.token_ids[-1] ^ change)
    golden = Golden(
        image="golden.png",
        prompt="caption en",
        pixel_grid=pixel_grid(loaded.pipeline.read_images([image]).pixel_values[0]),
        prompt_ids=tuple(loaded.encoder.encode("caption en", 1)),
        eos_ids=loaded.bundle.manifest.tokenizer.eos_ids,
        answer=OriginalAnswer(token_ids=tokens, text="the original's", cut=True),
    )
    files = {"golden.json": golden.to_json(), "golden.png": image}
    amend_bundle(Bundle.open(bundle), files, lambda manifest: manifest)


def test_it_is_ready_only_with_the_golden_answer(
    shapes_copy: Path, shapes_model: PaliGemma, log: Log
) -> None:
    with_golden(shapes_copy, shapes_model, 0)
    with running_server(shapes_copy) as running:
        assert running.address.ask("/readyz").status == 200
    assert "no golden answer" not in log.text


def test_another_answer_is_not_served(shapes_copy: Path, shapes_model: PaliGemma) -> None:
    with_golden(shapes_copy, shapes_model, 1)
    with (
        pytest.raises(DeviceError, match="agrees with the original on 75% of 4 tokens"),
        running_server(shapes_copy),
    ):
        pass


def test_what_cannot_be_opened_ends_it(shapes_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no\\.bundle"), running_server(tmp_path / "no.bundle"):
        pass
    with (
        pytest.raises(OptionError, match="without a plan"),
        running_server(shapes_bundle, lambda: load_model(shapes_bundle, "cpu")),
    ):
        pass
    with (
        pytest.raises(OptionError, match="cannot be read"),
        running_server(shapes_bundle, api_keys=tmp_path / "none"),
    ):
        pass


def test_what_has_begun_ends_before_the_server_does(
    shapes_bundle: Path, gate: Gate, log: Log
) -> None:
    with running_server(shapes_bundle, slots=1) as running, ThreadPoolExecutor(2) as threads:
        address = running.address
        first = threads.submit(caption, address)
        assert gate.reached.wait(SECONDS)
        second = threads.submit(caption, address)
        while running.scheduler.waiting < 1:
            pass
        running.server.stop()
        assert until(address, "/health", 503).code == "stopping"
        assert address.ask("/livez").status == 200
        refused = caption(address)
        assert (refused.status, refused.code) == (503, "closing")
        gate.go_on.set()
        assert first.result(SECONDS).json["text"]
        assert second.result(SECONDS).json["text"]
        running.thread.join(SECONDS)
        assert not running.thread.is_alive()
    assert "stopping; 2 requests have 30 seconds" in log.text
    assert not [record for record in log.records if record.exc_info]


def test_what_does_not_end_in_time_is_given_up(shapes_bundle: Path, gate: Gate, log: Log) -> None:
    with running_server(shapes_bundle, slots=1, drain=0.01) as running:  # noqa: SIM117
        with ThreadPoolExecutor(2) as threads:
            streamed = threads.submit(caption, running.address, "?stream=true")
            assert gate.reached.wait(SECONDS)
            plain = threads.submit(caption, running.address)
            while running.scheduler.waiting < 1:
                pass
            running.server.stop()
            log.wait_for("2 requests had not ended")
            gate.go_on.set()
            *_, last = streamed.result(SECONDS).body.decode().strip().split("\n\n")
            assert last.startswith("event: error\n")
            assert json.loads(last.partition("data: ")[2])["error"]["code"] == "closing"
            assert (plain.result(SECONDS).status, plain.result().code) == (503, "closing")
            running.thread.join(SECONDS)
    assert not [record for record in log.records if record.exc_info]


def test_a_device_that_fails_for_good_ends_the_server(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_slots: JobSlots) -> None:
        raise DeviceError("the GPU fell off at 0x7f00dead")

    monkeypatch.setattr(JobSlots, "step", fail)
    with pytest.raises(DeviceError, match="the GPU fell off"):  # noqa: SIM117
        with running_server(shapes_bundle) as running:
            for _ in range(3):
                reply = caption(running.address)
                assert (reply.status, reply.code) == (503, "device_error")
                assert b"0x7f00dead" not in reply.body
            running.thread.join(SECONDS)
            raise running.failure()


def test_who_leaves_frees_the_slot(shapes_bundle: Path, gate: Gate) -> None:
    """While an answer runs and while one waits; as JSON and as a stream."""
    with running_server(shapes_bundle, slots=1) as running:
        body = IMAGE.read_bytes()
        clients: list[socket.socket] = []
        for query in ("", "?stream=true", "", "?stream=true"):
            one = running.address.connect()
            head = f"POST /v1/caption{query} HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
            one.sendall(head.encode() + body)
            clients.append(one)
        while running.scheduler.waiting + running.scheduler.running < 4:
            pass
        for one in clients:
            one.close()
        gate.go_on.set()
        while running.scheduler.waiting or running.scheduler.running:
            pass
        assert caption(running.address).status == 200
        text = running.address.ask("/metrics").body.decode()
        assert 'request_success_total{finished_reason="stop"} 1.0' in text


def test_answers_are_those_of_the_model_alone(plain: Address, shapes_model: PaliGemma) -> None:
    assert caption(plain).json["text"] == str(shapes_model.caption(IMAGE))


def test_what_is_counted(shapes_bundle: Path) -> None:
    with running_server(shapes_bundle) as running:
        for _ in range(2):
            assert caption(running.address).status == 200
        while running.scheduler.running:  # an answer is told before its slot is given back
            pass
        reply = running.address.ask("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {one.name: one for one in text_string_to_metric_families(reply.body.decode())}
    values = {sample.name: sample.value for one in families.values() for sample in one.samples}
    ours = {name: value for name, value in values.items() if name.startswith("paligemma_edge_")}
    assert ours["paligemma_edge_request_success_total"] == 2
    assert ours["paligemma_edge_prompt_tokens_total"] > 2 * 64
    assert ours["paligemma_edge_generation_tokens_total"] > 2
    assert ours["paligemma_edge_num_requests_running"] == 0
    assert ours["paligemma_edge_num_requests_waiting"] == 0
    assert ours["paligemma_edge_slots"] == 2
    for stage in ("queue", "prefill", "decode"):
        assert ours[f"paligemma_edge_request_{stage}_time_seconds_count"] == 2
    assert ours["paligemma_edge_request_vision_time_seconds_count"] == 1
    assert ours["paligemma_edge_feature_cache_hits_total"] == 1
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert ours[f"paligemma_edge_{name}_seconds_count"] == 2
    assert ours["paligemma_edge_inter_token_latency_seconds_count"] > 2
    assert values["process_open_fds"] > 3
    (info,) = families["paligemma_edge_info"].samples
    assert info.labels == {"bundle": "shapes", "variant": "cpu-fp32", "device": "cpu"}


def test_refusals_are_counted_by_reason(shapes_bundle: Path, gate: Gate) -> None:
    with running_server(shapes_bundle, slots=1, max_waiting=1) as running:
        with ThreadPoolExecutor(2) as threads:
            some = [threads.submit(caption, running.address)]
            assert gate.reached.wait(SECONDS)
            some.append(threads.submit(caption, running.address))
            while running.scheduler.waiting < 1:
                pass
            reply = caption(running.address)
            assert (reply.status, reply.code) == (503, "queue_full")
            late = some[1]
            gate.go_on.set()
            assert {one.result(SECONDS).status for one in some} == {200}
        text = running.address.ask("/metrics").body.decode()
        assert 'requests_rejected_total{reason="queue_full"} 1.0' in text
        assert late.done()


def test_what_is_served_is_described(plain: Address, shapes_bundle: Path) -> None:
    info = plain.ask("/v1/info").json
    manifest = (shapes_bundle / "manifest.json").read_bytes()
    assert info["name"] == "paligemma-edge"
    assert info["bundle"] == {"name": "shapes", "id": hashlib.sha256(manifest).hexdigest()}
    assert (info["variant"], info["device"], info["adapters"]) == ("cpu-fp32", "cpu", [])
    assert (info["image_size"], info["max_model_len"], info["slots"]) == (112, 512, 2)
    assert (info["masks"], info["running"], info["waiting"]) == (True, 0, 0)
    assert info["limits"]["request_bytes"] == ServerOptions().max_body


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mix.bundle").mkdir()
    monkeypatch.chdir(tmp_path / "mix.bundle")
    assert model_id_of(".") == "mix"
    assert model_id_of(str(tmp_path / "mix.bundle")) == "mix"
    assert model_id_of("me/my-paligemma@v2") == "me/my-paligemma@v2"


KEY = "sk-1"
FOREIGN: dict[str, tuple[dict[str, str], int]] = {
    "no key": ({"Authorization": ""}, 401),
    "a wrong key": ({"Authorization": "Bearer sk-2"}, 401),
    "a foreign name": ({"Host": "evil.com"}, 403),
    "a foreign page": ({"Origin": "http://evil.com"}, 403),
}


def requests_of(routes: list[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        assert isinstance(route, Route)
        path = route.path.replace("{model:path}", "shapes")
        assert "{" not in path
        yield from ((path, method) for method in route.methods or () if method != "HEAD")


def test_no_route_is_open_to_strangers(shapes_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"one:{hashlib.sha256(KEY.encode()).hexdigest()}")
    with running_server(shapes_bundle, api_keys=keys) as running:
        asked = list(requests_of(running.app.routes))
        assert len(asked) > 20
        for path, method in asked:
            for given, status in FOREIGN.values():
                headers = {"Authorization": f"Bearer {KEY}", **given}
                reply = running.address.ask(path, method, headers=headers, body=b"{}")
                public = path in WITHOUT_KEY or path.startswith(("/page/", "/samples/"))
                if status == 401 and (public or path == "/"):
                    assert reply.status == 200, path
                else:
                    assert reply.status == status, path
                    assert reply.code
            known = running.address.ask(
                path, method, headers={"Authorization": f"Bearer {KEY}"}, body=b"{}"
            )
            assert known.status in (200, 400, 404, 415, 422), (path, known.status)


def test_https(shapes_bundle: Path, tmp_path: Path, log: Log) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    trusted = ssl.create_default_context(cafile=cert)
    with running_server(shapes_bundle, tls_cert=cert, tls_key=key) as running:
        port = running.address.port
        assert log.wait_for("ready:").endswith(f"https://127.0.0.1:{port}")
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=trusted)
        with contextlib.closing(client):
            client.request("GET", "/health")
            assert client.getresponse().read() == b'{"status":"ok"}'
        assert b" 200 " not in running.address.raw(b"GET /health HTTP/1.0\r\n\r\n")
        with running.address.connect() as plain, pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
        with contextlib.closing(
            trusted.wrap_socket(running.address.connect(), server_hostname="localhost")
        ) as one:
            one.sendall(b"no HTTP\r\n\r\n")
            assert read_all(one).startswith(b"HTTP/1.1 400 ")
    worse = [record for record in log.records if record.levelno > logging.INFO or record.exc_info]
    assert not worse, log.text


def test_without_a_page_there_is_none(shapes_bundle: Path) -> None:
    with running_server(shapes_bundle, page=False) as running:
        assert running.address.ask("/").status == 404
        assert running.address.ask("/page/app.js").status == 404
        assert running.address.ask("/health").status == 200


def test_options_are_checked() -> None:
    for field in dataclasses.fields(ServerOptions):
        assert field.name in (ServerOptions.__doc__ or "")
    for given in ({"port": 65536}, {"port": -1}, {"log_format": "xml"}):
        with pytest.raises(OptionError):
            ServerOptions(**given)
