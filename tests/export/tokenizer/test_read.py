"""The tokenizer of a bundle: copied unchanged, or converted and equal to the original."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, read_config
from paligemma_edge.export.tokenizer.from_json import convert_tokenizer
from paligemma_edge.export.tokenizer.probe_texts import probe_texts
from paligemma_edge.export.tokenizer.read import read_tokenizer
from paligemma_edge.runtime.errors import TokenizerError
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.gemma_tokenizer import added_token

MODEL: Any = sentencepiece_model_pb2
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<image>")


@pytest.fixture(scope="module")
def config(shapes_checkpoint: Path) -> PaliGemmaConfig:
    return read_config(shapes_checkpoint)


@pytest.fixture
def folder(shapes_checkpoint: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.model", "tokenizer.json"):
        shutil.copy(shapes_checkpoint / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pair(shapes_checkpoint: Path) -> tuple[Tokenizer, SentencePieceProcessor]:
    path = shapes_checkpoint / "tokenizer.json"
    converted = SentencePieceProcessor(model_proto=convert_tokenizer(path))
    return Tokenizer.from_file(str(path)), converted


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    (folder / "tokenizer.model").unlink(missing_ok=True)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_pieces(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "tokenizer.model"
    proto = MODEL.ModelProto.FromString(path.read_bytes())
    change(proto.pieces)
    path.write_bytes(proto.SerializeToString())


def load_error(folder: Path, config: PaliGemmaConfig) -> str:
    with pytest.raises(TokenizerError) as caught:
        read_tokenizer(folder, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sentencepiece_model_is_copied_unchanged(folder: Path, config: PaliGemmaConfig) -> None:
    (folder / "tokenizer.json").unlink()
    tokenizer = read_tokenizer(folder, config)
    assert tokenizer.model_bytes == (folder / "tokenizer.model").read_bytes()
    ids = tokenizer.config
    assert (ids.first_loc_id, ids.first_seg_id, ids.image_id) == (1000, 2024, 2152)
    assert (ids.pad_id, ids.eos_ids, ids.bos_id, ids.newline_id) == (0, (1,), 2, 5)


def add_token(folder: Path, name: str, piece: str, token: int) -> None:
    path = folder / name
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name == "tokenizer.json":
        data["added_tokens"].append(added_token(token, piece))
    else:
        data[piece] = token
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(("piece", "token"), [("<answer>", 2153), ("<answer>", 300), ("\n", 6)])
def test_added_tokens_that_no_tokenizer_has_are_an_error(
    piece: str, token: int, folder: Path, config: PaliGemmaConfig
) -> None:
    add_token(folder, "added_tokens.json", "<image>", 2152)
    add_token(folder, "added_tokens.json", "<loc0003>", 1003)
    assert read_tokenizer(folder, config).model_bytes == (folder / "tokenizer.model").read_bytes()
    add_token(folder, "added_tokens.json", piece, token)
    for there in ("too", "is not there"):
        error = load_error(folder, config)
        assert f"{piece!r} at id {token}" in error
        assert f"tokenizer.json {there}" in error
        assert "load the tokenizer with transformers and save it again" in error
        (folder / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize("both", [True, False])
def test_tokens_that_a_fine_tune_added_come_from_the_json(
    both: bool, folder: Path, config: PaliGemmaConfig
) -> None:
    text = "detect <extra_0> ; red<extra 1>star<loc0001> \n"
    add_token(folder, "tokenizer.json", "<extra_0>", 2153)
    add_token(folder, "tokenizer.json", "<extra 1>", 2154)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if not both:
        (folder / "tokenizer.model").unlink()
    config = dataclasses.replace(config, eos_token_ids=(1, 2154))
    tokenizer = read_tokenizer(folder, config)
    assert (tokenizer.moved_image_id, tokenizer.config.image_id) == (2152, 2154)
    assert tokenizer.config.eos_ids == (1, 2153)
    for end in (2152, 2155):
        other = dataclasses.replace(config, eos_token_ids=(1, end))
        assert f"names {end} as an id that ends an answer" in load_error(folder, other)
    encoder = PromptEncoder(tokenizer.model_bytes, tokenizer.config)
    wanted = original.encode(text, add_special_tokens=False).ids
    assert {2153, 2154} < set(wanted)
    # The image's id is the last of a bundle's.
    assert list(encoder.continuation(text)) == [t if t < 2152 else t - 1 for t in wanted]
    assert encoder.token_bytes(2152) == b"<extra_0>"
    assert encoder.token_bytes(2153) == b""  # it ends an answer
    assert "<image>" not in encoder.decode(range(2200))


def test_added_tokens_need_rows_of_the_table(folder: Path, config: PaliGemmaConfig) -> None:
    add_token(folder, "tokenizer.json", "<extra_0>", 2153)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=2153))
    assert "2154 pieces for an embedding of 2153 rows" in load_error(folder, config)


@pytest.mark.parametrize("text", ["", "[1]", '{"added_tokens": [1]}', "[" * 99999])
def test_an_unreadable_json_beside_the_model(
    text: str, folder: Path, config: PaliGemmaConfig
) -> None:
    (folder / "tokenizer.json").write_text(text)
    assert "can be read" in load_error(folder, config)


def test_a_json_without_a_model_is_converted(folder: Path, config: PaliGemmaConfig) -> None:
    wanted = read_tokenizer(folder, config)
    (folder / "tokenizer.model").unlink()
    actual = read_tokenizer(folder, config)
    assert actual.config == wanted.config
    original = SentencePieceProcessor(model_proto=wanted.model_bytes)
    converted = SentencePieceProcessor(model_proto=actual.model_bytes)
    for text in probe_texts():
        assert converted.encode(text) == original.encode(text), text


def test_loc_and_seg_need_not_be_added_tokens(folder: Path, config: PaliGemmaConfig) -> None:
    wanted = read_tokenizer(folder, config).config

    def unregister(data: dict[str, Any]) -> None:
        data["added_tokens"] = [
            token for token in data["added_tokens"] if token["content"][:4] not in ("<loc", "<seg")
        ]

    edit_json(folder, unregister)
    assert read_tokenizer(folder, config).config == wanted


ALPHABET = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    [" ", "  ", "\n", "▁", "<loc0001>", "<seg127>", "detect", " ; ", "cat"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ALPHABET, max_size=30).map("".join))
def test_any_text_is_encoded_alike(
    pair: tuple[Tokenizer, SentencePieceProcessor], text: str
) -> None:
    original, converted = pair
    if any(piece in text for piece in CONTROL):
        return
    ids = converted.encode(text)
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert converted.decode(ids) == original.decode(ids, skip_special_tokens=False)


def lowercase(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Lowercase"}


def thin_out(data: dict[str, Any]) -> None:
    """Remove merges that sentencepiece would still do."""
    data["model"]["merges"] = data["model"]["merges"][::2]


def drop_piece(data: dict[str, Any]) -> None:
    data["model"]["vocab"] = {"a": 0, "b": 5}
    data["model"]["merges"] = []


def other_model(data: dict[str, Any]) -> None:
    data["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    data["added_tokens"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lowercase, "its sentencepiece model as"),
        (thin_out, "its sentencepiece model as"),
        (drop_piece, "has no piece for"),
        (other_model, "WordLevel model, wanted BPE"),
        (lambda data: data.pop("model"), "is not a tokenizer that can be read"),
    ],
)
def test_a_tokenizer_that_cannot_be_converted(
    folder: Path, config: PaliGemmaConfig, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_json(folder, change)
    error = load_error(folder, config)
    assert message in error
    assert "tokenizer.model" in error


def rename(index: int, piece: str) -> Callable[[Any], None]:
    return lambda pieces: setattr(pieces[index], "piece", piece)


def swap(pieces: Any) -> None:  # noqa: ANN401
    pieces[1003].piece, pieces[1004].piece = pieces[1004].piece, pieces[1003].piece


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename(1000, "<loc>"), "no piece '<loc0000>'"),
        (rename(2151, "<seg>"), "no piece '<seg127>'"),
        (rename(5, "newline"), r"no piece '\n'"),
        (swap, "'<loc0003>' at id 1004, wanted 1003"),
        (lambda pieces: setattr(pieces[1500], "type", 5), "encodes '<loc0500>' as ids"),
        (lambda pieces: pieces.add(piece="more"), "the image token at id 2152"),
        (lambda pieces: pieces.extend([pieces[9]] * 30), "not a sentencepiece model"),
    ],
)
def test_pieces_of_another_tokenizer(
    folder: Path, config: PaliGemmaConfig, change: Callable[[Any], object], message: str
) -> None:
    edit_pieces(folder, change)
    assert message in load_error(folder, config)


def test_a_config_of_another_tokenizer(folder: Path, config: PaliGemmaConfig) -> None:
    text = dataclasses.replace(config.text, vocab_size=2151)
    assert "2152 pieces for an embedding of 2151 rows" in load_error(
        folder, dataclasses.replace(config, text=text)
    )
    other = dataclasses.replace(config, bos_token_id=107)
    assert "config.json says 107" in load_error(folder, other)
    other = dataclasses.replace(config, eos_token_ids=(1, 2152))
    assert "2152 as an id that ends an answer" in load_error(folder, other)
    assert "id 300" in load_error(folder, dataclasses.replace(config, image_token_id=300))


def test_image_may_be_a_piece_or_an_id_without_one(folder: Path, config: PaliGemmaConfig) -> None:
    beyond = dataclasses.replace(config, image_token_id=2160)
    assert read_tokenizer(folder, beyond).config.image_id == 2152
    edit_pieces(folder, lambda pieces: pieces.add(piece="<image>", type=3))
    assert read_tokenizer(folder, config).config.image_id == 2152


def test_missing_and_damaged_files(folder: Path, config: PaliGemmaConfig) -> None:
    (folder / "tokenizer.model").write_bytes(b"")
    assert "not a sentencepiece model" in load_error(folder, config)
    (folder / "tokenizer.model").write_bytes(b"no protobuf")
    assert "not a sentencepiece model" in load_error(folder, config)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_bytes(b"\xff{")
    assert "can be read" in load_error(folder, config)
    (folder / "tokenizer.json").unlink()
    assert "neither tokenizer.model nor tokenizer.json" in load_error(folder, config)


def test_a_model_with_damaged_bytes_is_read_or_refused_in_one_line(
    folder: Path, config: PaliGemmaConfig
) -> None:
    path = folder / "tokenizer.model"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            model = read_tokenizer(folder, config)
            _ = PromptEncoder(model.model_bytes, model.config).vocabulary
        except TokenizerError as error:
            refused += 1
            assert str(error).isprintable()
            assert len(str(error)) < 600
    assert 0 < refused < 300


def test_two_bytes_that_are_no_text(folder: Path, config: PaliGemmaConfig) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"<loc0500>", b"<loc\xff\xfe0>"))
    assert "is not a sentencepiece model, or is damaged" in load_error(folder, config)
