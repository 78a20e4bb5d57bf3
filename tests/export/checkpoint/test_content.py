"""What stands in the place of a checkpoint's file is told as what it is, and never waited for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.lora.adapter import read_adapter
from paligemma_edge.export.source import read_source
from paligemma_edge.export.verify import verify as verify_module
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.errors import CheckpointError, TokenizerError
from tests.helpers.journey import call

Stand = Callable[[Path], None]
REQUIRED = ("config.json", "model.safetensors", "tokenizer.model")
OPTIONAL = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("added_tokens.json", "vae-oid.npz"),
)
PIPE = "is a named pipe, not a regular file; put the file itself in its place"
POINTER = "is a pointer of Git LFS, not the file itself; run `git lfs pull`"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _pointer(path: Path) -> None:
    """As `git lfs pointer --file` writes it."""
    content = b"the file itself"
    digest = hashlib.sha256(content).hexdigest()
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"
    )


STANDS: dict[str, tuple[Stand, str]] = {
    "pipe": (os.mkfifo, PIPE),
    "device": (lambda path: path.symlink_to("/dev/null"), "is a device, not a regular file; "),
    "socket": (_socket, "is a socket, not a regular file; "),
    "folder": (Path.mkdir, "is a folder, not a regular file; "),
    "pointer": (_pointer, POINTER),
}


@pytest.fixture(scope="module")
def original(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def _put(stand: Stand, path: Path) -> None:
    path.unlink(missing_ok=True)
    stand(path)


@pytest.mark.parametrize("kind", STANDS)
@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
def test_a_checkpoint(name: str, kind: str, folder: Path) -> None:
    stand, wanted = STANDS[kind]
    _put(stand, folder / name)
    with pytest.raises((CheckpointError, TokenizerError)) as caught:
        read_source(folder, [], None, None, "full")
    assert str(caught.value).startswith(f"{folder / name} {wanted}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", STANDS)
def test_a_tokenizer_without_its_sentencepiece_model(kind: str, folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    stand, wanted = STANDS[kind]
    _put(stand, folder / "tokenizer.json")
    with pytest.raises(TokenizerError) as caught:
        read_source(folder, [], None, None, "full")
    assert str(caught.value).startswith(f"{folder / 'tokenizer.json'} {wanted}")


@pytest.mark.parametrize("kind", STANDS)
def test_shards_and_their_index(kind: str, folder: Path) -> None:
    stand, wanted = STANDS[kind]
    (folder / "model.safetensors").unlink()
    index, shard = folder / "model.safetensors.index.json", folder / "a.safetensors"
    for path in (shard, index):
        index.write_text(json.dumps({"weight_map": {"x": shard.name}}))
        _put(stand, path)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder)
        assert str(caught.value).startswith(f"{path} {wanted}")


@pytest.mark.parametrize("kind", sorted(set(STANDS) - {"folder"}))
@pytest.mark.parametrize("name", ["pt_224.npz", "pt_224.npz.part0"])
def test_an_npz_and_its_parts(name: str, kind: str, tmp_path: Path) -> None:
    stand, wanted = STANDS[kind]
    stand(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "pt_224.npz")
    assert str(caught.value).startswith(f"{tmp_path / name} {wanted}")


@pytest.mark.parametrize("kind", STANDS)
def test_files_that_are_given_by_an_option(kind: str, folder: Path, tmp_path: Path) -> None:
    stand, wanted = STANDS[kind]
    given = tmp_path / "given"
    stand(given)
    with pytest.raises(CheckpointError) as masks:
        read_source(folder, [], None, given, "full")
    assert str(masks.value).startswith(f"{given} {wanted}")
    if kind != "folder":
        with pytest.raises(TokenizerError) as tokenizer:
            read_source(folder, [], given, None, "full")
        assert str(tokenizer.value).startswith(f"{given} {wanted}")


@pytest.mark.parametrize("kind", STANDS)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter(name: str, kind: str, tmp_path: Path) -> None:
    stand, wanted = STANDS[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    _put(stand, tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(tmp_path, {})
    assert str(caught.value).startswith(f"{tmp_path / name} {wanted}")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_what_transformers_alone_reads(
    name: str, shapes_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "trace_all", None)
    _put(os.mkfifo, folder / name)
    with pytest.raises(CheckpointError) as caught:
        verify(shapes_bundle, folder)
    assert str(caught.value).startswith(f"{folder / name} {PIPE}")


@pytest.mark.parametrize("name", ["manifest.json", "adapter_config.json"])
def test_a_pipe_in_a_folder_that_is_no_checkpoint_is_not_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_a_pointer_is_no_licence(folder: Path) -> None:
    _pointer(folder / "LICENSE")
    source = read_source(folder, [], None, False, "full")
    assert not source.licenses.contents
    (line,) = source.licenses.refused
    assert "it is a pointer of Git LFS" in line


def test_the_command_says_it_in_one_line(folder: Path, tmp_path: Path) -> None:
    _put(os.mkfifo, folder / "config.json")
    told = call("export", folder, tmp_path / "a.bundle")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == f"paligemma-edge: {folder / 'config.json'} {PIPE}\n"
    assert not (tmp_path / "a.bundle").exists()
