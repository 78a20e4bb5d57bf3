"""Training examples: fresh images, questions about each, and the batches made of them.

A batch has exactly what PaliGemma's processor makes of the same texts and suffixes, but one
image's pixels are there once, with `image` to say which rows ask about it, and `truth` to say
what each patch shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sentencepiece as spm
import torch
from torch import Tensor
from torch.utils.data import Dataset

from samples.shapes.checkpoint_files import IMAGE_ID, PATCHES
from samples.shapes.scenes import Scene, draw
from samples.shapes.tasks import CodeTable, answer_text, ask, possible
from samples.shapes.vision_pretraining import pixel_values, truth

PAD, EOS, BOS = 0, 1, 2
IGNORED = -100
FIRST = 1_000_000  # the vision tower has seen the images before this number


@dataclass(frozen=True)
class Lesson:
    """An image with prompts and the texts that should follow them."""

    scene: Scene
    pairs: tuple[tuple[str, str], ...]


class Lessons(Dataset[Lesson]):
    """Lesson i is on image FIRST + skip + i: a question of each task, and one more to answer."""

    def __init__(self, count: int, codes: CodeTable, skip: int = 0) -> None:
        self.count, self.codes, self.skip = count, codes, skip

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Lesson:
        number = self.skip + index
        scene = draw("train", FIRST + number)
        rng = np.random.default_rng([2, number])
        tasks = possible(scene)
        asked = [ask(scene, task, rng) for task in (*tasks, *(t for t in tasks if t == "answer"))]
        return Lesson(scene, tuple((q.prompt, answer_text(q, scene, self.codes)) for q in asked))


@dataclass(frozen=True)
class Collator:
    """Lessons to tensors; padded on the left, as the processor pads."""

    pieces: spm.SentencePieceProcessor

    def __call__(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        """All pairs of all lessons as rows of one batch."""
        rows = [self._ids(*pair) for lesson in lessons for pair in lesson.pairs]
        owners = [index for index, lesson in enumerate(lessons) for _ in lesson.pairs]
        scenes = [lesson.scene for lesson in lessons]
        return {
            "pixel_values": pixel_values(scenes),
            "truth": truth(scenes),
            "image": torch.tensor(owners),
            **_padded(rows),
        }

    def _ids(self, prompt: str, suffix: str) -> tuple[list[int], list[int]]:
        before = [IMAGE_ID] * PATCHES + [BOS] + self.pieces.encode(prompt + "\n")
        return before, [*self.pieces.encode(suffix), EOS]


def _padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Ids, mask, types (0 before the suffix, 1 in it) and labels, [rows, longest]."""
    longest = max(len(before) + len(after) for before, after in rows)
    ids = torch.full((len(rows), longest), PAD)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (before, after) in enumerate(rows):
        whole = before + after
        ids[row, longest - len(whole) :] = torch.tensor(whole)
        mask[row, longest - len(whole) :] = 1
        types[row, longest - len(after) :] = 1
    labels = torch.where(types == 1, ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}
