from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from paligemma_edge.runtime.results.draw import PALETTE
from paligemma_edge.runtime.serve.page import page_routes

PAGE = files("paligemma_edge.runtime.serve") / "page"
SCRIPTS = {
    path.name: path.read_text("utf-8") for path in PAGE.iterdir() if path.name.endswith(".js")
}
HTML = (PAGE / "index.html").read_text("utf-8")
PATHS = [route.path for route in page_routes()]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_bound_to_this_server(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["default-src 'self'", "img-src 'self' blob: data:"]
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_is_the_same_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(path, headers={"if-none-match": condition})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content


def test_types_and_head(client: TestClient) -> None:
    types = {"/": "text/html; charset=utf-8", "/page/app.js": "text/javascript; charset=utf-8"}
    for path, kind in types.items():
        assert client.get(path).headers["content-type"] == kind
    head = client.head("/page/page.css")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(client.get("/page/page.css").content)


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/index.html",  # one address each
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/samples/.00-masks.png",
        "/samples/__init__.py",
        "/samples/..%2fprompts.json",
        "/page/app.js%00",
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_only_reading_is_allowed(client: TestClient) -> None:
    assert client.post("/").status_code == 405
    assert client.delete("/page/app.js").status_code == 405


def test_samples_are_all_of_the_package(client: TestClient) -> None:
    entries = client.get("/samples/prompts.json").json()
    for entry in entries:
        content = client.get(f"/samples/{entry['image']}").content
        assert content == (files("paligemma_edge.sample_images") / entry["image"]).read_bytes()
    assert len(entries) == 12


def test_etag_is_of_the_content(client: TestClient) -> None:
    response = client.get("/page/app.js")
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()[:32]}"'


def test_the_page_has_no_style_or_script_that_its_policy_forbids() -> None:
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", HTML)
    assert re.findall(r"<script[^>]*>", HTML) == ['<script type="module" src="page/app.js">']
    assert not re.search(r"(https?:)?//[a-z]", HTML + (PAGE / "page.css").read_text("utf-8"))


def test_what_comes_from_outside_is_only_ever_set_as_text() -> None:
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    for name, script in SCRIPTS.items():
        assert not re.search(dangerous, script), name


def test_scripts_find_what_they_import_and_look_up() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', HTML))
    for name, script in SCRIPTS.items():
        assert set(re.findall(r'from "\./([^"]+)"', script)) <= SCRIPTS.keys(), name
        assert set(re.findall(r'find\("([^"]+)"\)', script)) <= ids, name


def test_colours_are_those_of_the_overlays() -> None:
    match = re.search(r"PALETTE = (\[.*?\n\]);", SCRIPTS["colours.js"], re.DOTALL)
    assert match
    assert json.loads(match[1].replace(",\n]", "\n]")) == [list(colour) for colour in PALETTE]
