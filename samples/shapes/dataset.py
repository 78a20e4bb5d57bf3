"""Training examples: fresh scenes, questions about each, and the batches made of them.

A batch has exactly what PaliGemma's processor makes of the same prompts and suffixes, but without
pixels: `image_index` says which image a row is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import sentencepiece as spm
import torch
from torch import Tensor

from samples.shapes.checkpoint_files import IMAGE_ID, PATCHES
from samples.shapes.scenes import Scene, draw
from samples.shapes.tasks import CodeTable, answer_text, make_question, possible_tasks

Row: TypeAlias = tuple[list[int], list[int], int]  # before the suffix, the suffix, its image
PAD, EOS, BOS = 0, 1, 2
IGNORED = -100
FIRST = 1_000_000  # the vision tower was pre-trained on scenes with lower numbers


@dataclass(frozen=True)
class TrainingExample:
    """A scene with prompts and the answers that should follow them."""

    scene: Scene
    pairs: tuple[tuple[str, str], ...]


def training_example(number: int, codes: CodeTable) -> TrainingExample:
    """Scene FIRST + number with one question for each task, but two of `answer` and `detect`."""
    scene = draw("train", FIRST + number)
    rng = np.random.default_rng([2, number])
    tasks = possible_tasks(scene)
    extra = [task for task in tasks if task in ("answer", "detect")]
    questions = [make_question(scene, task, rng) for task in (*tasks, *extra)]
    pairs = tuple((q.prompt, answer_text(q, scene, codes)) for q in questions)
    return TrainingExample(scene, pairs)


@dataclass(frozen=True)
class ExampleCollator:
    """Examples to tensors, padded on the left as the processor pads."""

    pieces: spm.SentencePieceProcessor

    def __call__(
        self, examples: Sequence[TrainingExample], batches: int = 1
    ) -> list[dict[str, Tensor]]:
        """All pairs of all examples as rows, the shortest first, in batches of like length."""
        rows = [
            (*self._ids(*pair), index)
            for index, example in enumerate(examples)
            for pair in example.pairs
        ]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        size = -(-len(rows) // batches)
        return [_padded(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _ids(self, prompt: str, suffix: str) -> tuple[list[int], list[int]]:
        before = [IMAGE_ID] * PATCHES + [BOS] + self.pieces.encode(prompt + "\n")
        return before, [*self.pieces.encode(suffix), EOS]


def _padded(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Ids, mask, types (0 before the suffix, 1 in it), labels [rows, longest]; images [rows]."""
    longest = max(len(before) + len(after) for before, after, _ in rows)
    ids = torch.full((len(rows), longest), PAD)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (before, after, _) in enumerate(rows):
        whole = before + after
        ids[row, longest - len(whole) :] = torch.tensor(whole)
        mask[row, longest - len(whole) :] = 1
        types[row, longest - len(after) :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": torch.where(types == 1, ids, IGNORED),
        "image_index": torch.tensor([index for *_, index in rows]),
    }
