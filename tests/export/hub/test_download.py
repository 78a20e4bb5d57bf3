"""Names on the Hub in place of paths: what is fetched, the errors, and what needs no network."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.export.hub.cache import label
from paligemma_edge.export.hub.download import local_path
from paligemma_edge.export.hub.file_sets import ADAPTER, CHECKPOINT, TOKENIZER
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.errors import CheckpointError, OutputError
from paligemma_edge.runtime.hub.file_set import FileSet
from tests.helpers import adapters as peft
from tests.helpers.fake_hub import Hub, keep

NAME = "google/paligemma-tiny"
ELSEWHERE = ("flax_model.npz", "pytorch_model.bin", "onnx/model.safetensors", "README.md")
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(dtype="bfloat16")


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return peft.train(checkpoint, folder, target_modules=["q_proj"])


def fetch_error(name: str = NAME, wanted: FileSet = CHECKPOINT, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(CheckpointError) as caught:
        local_path(name, wanted, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{name.partition('@')[0]} ")
    return str(caught.value)


# What is a Hub name


@pytest.mark.parametrize(
    "given",
    [
        *("mix", "./google/mix", "a/b/c", "/a/b", "a/b/", "a/..", "a/-b", "../mix", "a--b/c"),
        *("mix@v1", "a@v1/b", "a/b@", "a/b@ v1", "~/mix", "@a/b"),
    ],
)
def test_anything_but_a_hub_name_is_a_path(given: str, hub_cache: Path) -> None:
    assert local_path(given, CHECKPOINT) == Path(given)


@pytest.mark.parametrize("given", ["jax/pt.npz", "jax/pt.npz.part0", "jax/PT.NPZ"])
def test_an_npz_is_a_path(given: str, hub_cache: Path) -> None:
    assert local_path(given, CHECKPOINT) == Path(given)


def test_what_exists_is_a_path(hub_cache: Path) -> None:
    Path("google").mkdir()
    Path("google/mix").mkdir()
    assert local_path("google/mix", CHECKPOINT) == Path("google/mix")
    Path("google/mix@v1").mkdir()
    assert local_path("google/mix@v1", CHECKPOINT) == Path("google/mix@v1")
    Path("google/broken").symlink_to("nowhere")
    assert local_path(Path("google/broken"), CHECKPOINT) == Path("google/broken")


@given(st.text(max_size=200) | st.from_regex(r"[\w.\-/]{1,9}/[\w.-]{1,100}", fullmatch=True))
def test_any_text_is_a_path_or_an_error(text: str) -> None:
    """Without a network, and with an empty cache."""
    try:
        assert local_path(text, CHECKPOINT, from_cache=True) == Path(text)
    except CheckpointError as error:
        assert text.count("/") == 1
        assert "--from-cache" in str(error)


# What is fetched


def test_fetches_only_the_files_that_are_read(
    hub: Hub, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = hub.add(NAME, checkpoint, *ELSEWHERE)
    folder = local_path(NAME, CHECKPOINT)
    assert sorted(hub.sent) == sorted(path.name for path in checkpoint.iterdir())
    for path in checkpoint.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert label(folder) == f"{NAME}@{repository.commit}"
    hub.sent.clear()
    assert local_path(NAME, CHECKPOINT) == local_path(NAME, CHECKPOINT, from_cache=True) == folder
    assert not hub.sent
    assert capsys.readouterr().err == ""  # a bar is for a terminal


def test_shards_are_fetched_with_their_index(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    for name in ("config.json", "model.safetensors.index.json", *shards):
        (folder / name).write_text(name)
    hub.add(NAME, folder, *ELSEWHERE)
    assert {path.name for path in local_path(NAME, CHECKPOINT).iterdir()} == {
        path.name for path in folder.iterdir()
    }


def test_an_adapter_and_a_tokenizer(hub: Hub, adapter: Path, checkpoint: Path) -> None:
    hub.add("me/lora", adapter, "optimizer.pt")
    folder = local_path("me/lora", ADAPTER)
    assert sorted(path.name for path in folder.iterdir()) == [peft.CONFIG, peft.WEIGHTS]
    hub.add(NAME, checkpoint)
    folder = local_path(NAME, TOKENIZER)
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer.model"]


def test_only_the_given_revision_is_fetched(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint, revisions=("main", "bfloat16"))
    folder = local_path(f"{NAME}@bfloat16", CHECKPOINT)
    assert local_path(f"{NAME}@bfloat16", CHECKPOINT, from_cache=True) == folder
    assert local_path(f"{NAME}@{folder.name}", CHECKPOINT, from_cache=True) == folder
    assert "at 'main'" in fetch_error(from_cache=True)


def test_a_gated_repository_and_a_token(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint, token="hf_mine")
    line = fetch_error()
    assert "is gated on the Hub, and you have no token; " in line
    assert f"accept its licence at {hub.address}/{NAME}, then run `hf auth login`" in line
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "is gated on the Hub, and your token gives no access; " in fetch_error()
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert (local_path(NAME, CHECKPOINT) / "config.json").is_file()


# What cannot be fetched


def test_a_missing_repository(hub: Hub, checkpoint: Path) -> None:
    line = fetch_error("google/paligema")
    assert "is neither a path here nor a repository on the Hub that you can see" in line
    assert "check the name; if it is private, run `hf auth login`" in line
    hub.add(NAME, checkpoint, private=True)
    assert "if it is private" in fetch_error()


def test_a_missing_revision(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    assert "has no revision 'v9' on the Hub; give a branch" in fetch_error(f"{NAME}@v9")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, "cannot be fetched: the Hub answers HTTP 503; try again later"),
        (403, "enable access in your token's settings"),
    ],
)
def test_an_http_error_of_the_hub(status: int, message: str, hub: Hub) -> None:
    hub.status = status
    line = fetch_error()
    assert message in line
    assert ("run `hf auth login`" in line) == (status == 403)


def test_no_network(hub_cache: Path, checkpoint: Path) -> None:
    line = fetch_error()
    assert "is not a path here, and cannot be fetched from the Hub (ConnectError" in line
    assert "check the network, or give the folder of a copy" in line
    kept = keep(hub_cache, NAME, checkpoint)
    assert local_path(NAME, CHECKPOINT) == kept  # as huggingface_hub does


def test_offline(hub_cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = fetch_error()
    assert f"not complete in the cache {hub_cache} at 'main'; HF_HUB_OFFLINE is set" in line
    kept = keep(hub_cache, NAME, checkpoint)
    assert local_path(NAME, CHECKPOINT) == kept


def test_from_the_cache(hub_cache: Path, checkpoint: Path) -> None:
    line = fetch_error(from_cache=True)
    assert f"not complete in the cache {hub_cache} at 'main'; leave --from-cache out once" in line
    kept = keep(hub_cache, NAME, checkpoint)
    assert local_path(NAME, CHECKPOINT, from_cache=True) == kept
    assert "at 'v2'" in fetch_error(f"{NAME}@v2", from_cache=True)


def test_an_incomplete_cache(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    local_path(NAME, TOKENIZER)
    assert "is not a path here, and not complete in the cache" in fetch_error(from_cache=True)
    assert local_path(NAME, CHECKPOINT).is_dir()


def test_a_cache_without_weights(hub_cache: Path, checkpoint: Path) -> None:
    """As another program leaves it that fetched one file; also a link whose file was deleted."""
    kept = keep(hub_cache, NAME, checkpoint)
    (kept / "model.safetensors").resolve().unlink()
    line = fetch_error(from_cache=True)
    assert f"as stored in {kept} has neither model.safetensors nor" in line
    assert "fetch it with a network" in line


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        (CHECKPOINT, "has neither model.safetensors nor .* give a LoRA adapter by --adapter"),
        (ADAPTER, "has no adapter_model.safetensors, wanted a LoRA .* load it with peft"),
        (TOKENIZER, "has neither tokenizer.model nor tokenizer.json, wanted .* give its path"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_repository_of_something_else(
    wanted: FileSet, advice: str, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "config.json").write_text("{}")
    hub.add(NAME, tmp_path / "jax", *ELSEWHERE)
    with pytest.raises(CheckpointError, match=advice):
        local_path(NAME, wanted)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/models--google--x"), 1),
    ],
)
def test_a_cache_that_cannot_be_written(
    error: OSError,
    code: int,
    hub_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OutputError, match=f"{NAME} cannot be kept in .*{error.strerror}"):
        local_path(NAME, CHECKPOINT)
    assert cli.main(["export", NAME, "x.bundle"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "set HF_HOME to another folder" in line


def test_an_error_of_any_kind_is_a_line(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("CAS service error :\n  reqwest")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "from the Hub (RuntimeError: CAS service error : reqwest)" in fetch_error()


# The commands


def test_the_commands_take_hub_names(
    hub_cache: Path,
    checkpoint: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the real huggingface_hub, from a cache that was made by hand: no network, no fakes."""
    keep(hub_cache, NAME, checkpoint, "a" * 40)
    keep(hub_cache, "me/lora", adapter, "b" * 40)
    names = ["--adapter", "me/lora", "--from-cache"]
    assert cli.main(["export", NAME, "hub.bundle", *names, "--tokenizer", NAME]) == 0
    plain = ["--adapter", str(adapter)]
    assert cli.main(["export", str(checkpoint), "plain.bundle", *plain]) == 0
    hub, local = (
        json.loads((tmp_path / f"{name}.bundle" / "manifest.json").read_text())
        for name in ("hub", "plain")
    )
    assert hub["source"].pop("checkpoint") == f"{NAME}@{'a' * 40}"
    assert hub["source"].pop("terms") == "https://ai.google.dev/gemma/terms"
    assert hub["source"].pop("adapters").startswith(f"me/lora@{'b' * 40} (")
    del local["source"]["checkpoint"], local["source"]["adapters"]
    assert hub == local
    command = ["adapter", "plain.bundle", "me/lora", "--name", "mine", "--from-cache"]
    assert cli.main(command) == 0
    adapters = json.loads((tmp_path / "plain.bundle" / "manifest.json").read_text())["adapters"]
    assert adapters["mine"]["source"] == f"me/lora@{'b' * 40}"
    few = ["--max-new-tokens", "2", *names]
    assert cli.main(["verify", "hub.bundle", NAME, *few]) == 0
    capsys.readouterr()
    assert cli.main(["export", f"{NAME}@v1", "y.bundle", "--from-cache"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "at 'v1'" in line
    assert not Path("y.bundle").exists()
