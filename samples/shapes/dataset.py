"""Training examples: fresh scenes, questions about each, and the batches made of them.

A batch has exactly what PaliGemma's processor makes of the same prompts and suffixes, but each
image's pixels are in it once: `image_index` says which image a row is about, and `patch_labels`
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
from samples.shapes.tasks import CodeTable, answer_text, make_question, possible_tasks
from samples.shapes.vision_pretraining import patch_labels, pixel_values

PAD, EOS, BOS = 0, 1, 2
IGNORED = -100
FIRST = 1_000_000  # the vision tower was pre-trained on scenes with lower numbers


@dataclass(frozen=True)
class TrainingExample:
    """A scene with prompts and the answers that should follow them."""

    scene: Scene
    pairs: tuple[tuple[str, str], ...]


class ShapesDataset(Dataset[TrainingExample]):
    """Example i is scene FIRST + skip + i: one question for each task, two of them `answer`."""

    def __init__(self, count: int, codes: CodeTable, skip: int = 0) -> None:
        self.count, self.codes, self.skip = count, codes, skip

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TrainingExample:
        number = self.skip + index
        scene = draw("train", FIRST + number)
        rng = np.random.default_rng([2, number])
        tasks = possible_tasks(scene)
        extra = [task for task in tasks if task == "answer"]
        questions = [make_question(scene, task, rng) for task in (*tasks, *extra)]
        pairs = tuple((q.prompt, answer_text(q, scene, self.codes)) for q in questions)
        return TrainingExample(scene, pairs)


@dataclass(frozen=True)
class ExampleCollator:
    """Examples to tensors, padded on the left as the processor pads."""

    pieces: spm.SentencePieceProcessor

    def __call__(self, examples: list[TrainingExample]) -> dict[str, Tensor]:
        """All pairs of all examples as rows of one batch."""
        rows = [self._ids(*pair) for example in examples for pair in example.pairs]
        owners = [index for index, example in enumerate(examples) for _ in example.pairs]
        scenes = [example.scene for example in examples]
        return {
            "pixel_values": pixel_values(scenes),
            "patch_labels": patch_labels(scenes),
            "image_index": torch.tensor(owners),
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
