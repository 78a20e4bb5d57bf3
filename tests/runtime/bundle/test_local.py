"""Bundles by their names on the Hub: what is fetched, what is not, and without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.errors import BundleError, MissingExtraError
from tests.helpers.fake_hub import Hub, Repository, keep
from tests.helpers.small_bundle import GRAPH, WEIGHTS, write

NAME = "me/mix"
FILES = ["manifest.json", GRAPH, WEIGHTS, "tokenizer.model"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def _error(name: str = NAME) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_bundle_is_fetched_and_then_opened_without_a_network(hub: Hub, bundle: Path) -> None:
    repository = hub.add(NAME, bundle, "README.md", "pytorch_model.bin", "cpu-fp32/other.bin")
    opened = open_bundle(NAME)
    opened.verify(opened.manifest.files)
    assert opened.manifest == Bundle.open(bundle).manifest
    assert opened.path.name == repository.commit
    assert sorted(hub.sent) == sorted(FILES)
    requests = hub.requests
    assert open_bundle(NAME).path == opened.path
    assert open_bundle(f"{NAME}@main").path == opened.path
    assert open_bundle(f"{NAME}@{repository.commit}").path == opened.path
    assert hub.requests == requests


def test_a_revision(hub: Hub, bundle: Path) -> None:
    hub.add(NAME, bundle, revisions=("main", "v1", "refs/pr/3"))
    assert open_bundle(f"{NAME}@v1").file(GRAPH).is_file()
    assert open_bundle(f"{NAME}@refs/pr/3").file(GRAPH).is_file()
    assert "has no revision 'v9' on the Hub; give a branch, a tag or a commit" in _error(
        f"{NAME}@v9"
    )


def test_a_folder_of_that_name_comes_first(hub: Hub, bundle: Path) -> None:
    hub.add(NAME, bundle)
    Path("me").mkdir()
    bundle.rename("me/mix")
    assert open_bundle(NAME).path == Path("me/mix")
    assert not hub.requests
    Path("me/other").mkdir()
    assert "me/other has no manifest.json" in _error("me/other")
    assert not hub.requests


def test_the_rest_of_an_interrupted_download_is_fetched(hub: Hub, bundle: Path) -> None:
    hub.add(NAME, bundle)
    kept = open_bundle(NAME).path
    hub.sent.clear()
    (kept / WEIGHTS).resolve().unlink()
    (kept / WEIGHTS).unlink()
    opened = open_bundle(NAME)
    opened.verify(opened.manifest.files)
    assert hub.sent == [WEIGHTS]


def test_from_a_cache_that_was_copied_here(hub_cache: Path, bundle: Path) -> None:
    """No network, no reference but the one to the branch, no listing of the repository."""
    kept = keep(hub_cache, NAME, bundle)
    assert open_bundle(NAME).path == kept
    assert open_bundle(f"{NAME}@{kept.name}").path == kept


def test_offline(hub_cache: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = _error()
    assert f"{NAME} is not a path here, and not complete in the cache {hub_cache}" in line
    assert "HF_HUB_OFFLINE is set" in line
    kept = keep(hub_cache, NAME, bundle)
    assert open_bundle(NAME).path == kept


def test_neither_a_folder_nor_a_repository(hub: Hub) -> None:
    line = _error("bundles/mix")
    assert "bundles/mix is neither a path here nor a repository on the Hub" in line


def test_no_network(hub_cache: Path) -> None:
    line = _error()
    assert f"{NAME} is not a path here, and cannot be fetched from the Hub (ConnectError" in line


def test_a_repository_of_a_checkpoint_is_not_fetched(hub: Hub) -> None:
    hub.repositories[NAME] = Repository({"config.json": b"{}", "model.safetensors": b"x" * 99})
    line = _error()
    assert "has no manifest.json, wanted a bundle" in line
    assert "export it, if it is a checkpoint" in line
    assert not hub.sent


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema_version": "9.0"}'])
def test_a_manifest_of_something_else(hub: Hub, content: bytes) -> None:
    hub.repositories[NAME] = Repository({"manifest.json": content, "model.safetensors": b"x"})
    assert "manifest" in _error()
    assert hub.sent == ["manifest.json"]


def test_a_manifest_with_patterns_for_names_fetches_nothing(hub: Hub, bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"]["*"] = data["files"][GRAPH]
    (bundle / "manifest.json").write_text(json.dumps(data))
    hub.add(NAME, bundle)
    assert "'*', which is not a plain path" in _error()
    assert hub.sent == ["manifest.json"]


def test_a_repository_that_lacks_a_file(hub: Hub, bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    hub.add(NAME, bundle)
    assert f"{WEIGHTS} is missing" in _error()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"there is no me/mix@v1 here; .*\[hub\]'"):
        open_bundle("me/mix@v1")
    for path in ("mix", "./me/mix", "../me/mix", "/me/mix", os.path.join("a", "b", "c")):  # noqa: PTH118
        with pytest.raises(BundleError, match="does not exist"):
            open_bundle(path)


def test_a_download_into_a_folder_of_ones_own(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    """huggingface_hub keeps notes of its own in it, in `.cache`."""
    hub.add(NAME, bundle, "README.md")
    folder = Path(huggingface_hub.snapshot_download(NAME, local_dir=tmp_path / "mine"))
    assert (folder / ".cache").is_dir()
    opened = open_bundle(folder)
    opened.verify(opened.manifest.files)
