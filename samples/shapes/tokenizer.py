"""Trains the tokenizer: SentencePiece BPE with PaliGemma's special pieces, also as JSON.

Ids: 0 pad, 1 eos, 2 bos, 3 unk, 4 mask, 5 newline, then bytes and words, then <loc0000>.. and
<seg000>.., then <image>, which is in tokenizer.json only.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2
from transformers import AddedToken, GemmaTokenizer

from samples.shapes.scenes import KINDS, draw
from samples.shapes.tasks import make_question, possible_tasks

VOCABULARY = 1000  # pieces before <loc> and <seg>, with <mask> and the newline
LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))
pb: Any = sentencepiece_model_pb2  # its classes are created at run time
IMAGE_TOKEN = "<image>"
_ENGLISH = Path(__file__).with_name("english.txt")


def corpus(scenes: int = 1500) -> list[str]:
    """Prompts and answers about training scenes, and some English."""
    lines = _ENGLISH.read_text(encoding="utf-8").splitlines()
    return [*_task_lines(scenes), *(lines * 4)]


def _task_lines(scenes: int) -> Iterator[str]:
    """Words drawn in a scene are left out, so that they are tokenized letter by letter."""
    rng = np.random.default_rng(0)
    for number in range(scenes):
        scene = draw("train", number)
        for task in possible_tasks(scene):
            question = make_question(scene, task, rng)
            yield question.prompt
            if scene.word is None:
                yield question.text or " ; ".join(f" {kind}" for kind in KINDS[:2])


def train(lines: list[str]) -> bytes:
    """The trained tokenizer.model."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY - 2,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    return _with_own_pieces(model.getvalue())


def _with_own_pieces(model: bytes) -> bytes:
    """Add <mask> and the newline after the control pieces, <loc> and <seg> at the end."""
    proto = pb.ModelProto.FromString(model)
    trained = list(proto.pieces)
    del proto.pieces[:]
    proto.pieces.extend(
        [*trained[:4], *_own(["<mask>", "\n"]), *trained[4:], *_own([*LOCATIONS, *SEGMENTS])]
    )
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString())


def _own(texts: list[str]) -> list[Any]:
    kind = pb.ModelProto.SentencePiece.USER_DEFINED
    return [pb.ModelProto.SentencePiece(piece=text, score=0.0, type=kind) for text in texts]


def save(model: bytes, folder: Path) -> GemmaTokenizer:
    """Write tokenizer.model, and the files that transformers converts it into."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as plain:
        Path(plain, "tokenizer.model").write_bytes(model)
        tokenizer: GemmaTokenizer = GemmaTokenizer.from_pretrained(plain)
    image = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    tokenizer.save_pretrained(folder)
    folder.joinpath("tokenizer.model").write_bytes(model)
    return tokenizer
