"""Pre-trains the vision tower, in place of the SigLIP pre-training that PaliGemma starts from.

Each patch learns to predict the shape that covers most of it, with its colour, box and rank from
left to right, or the letter and the word it belongs to. The prediction heads are not shipped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, smooth_l1_loss
from transformers import SiglipVisionModel

from samples.shapes.optimizer import MixedOptimizer
from samples.shapes.parallel import Part
from samples.shapes.scenes import COLOURS, KINDS, SIDE, Scene, Word, draw

IMAGES_PER_STEP = 64
PATCH = 14
POSITIONS = "embeddings.position_embedding.weight"
GRID = SIDE // PATCH
_LETTERS = 26
_LONGEST = 5  # letters of a word
BACKGROUND = len(KINDS) + _LETTERS  # the "kind" of the background
_NONE = -100  # no label: what cross_entropy ignores


def patch_labels(scenes: list[Scene]) -> Tensor:
    """Labels [batch, patches, 12], int64: kind, colour, rank, four edges, five letters."""
    return torch.from_numpy(np.stack([_scene_labels(scene) for scene in scenes]))


def _scene_labels(scene: Scene) -> NDArray[np.int64]:
    """Labels [patches, 12] of one scene."""
    labels = np.full((GRID, GRID, 7 + _LONGEST), _NONE, dtype=np.int64)
    labels[..., 0] = BACKGROUND
    covered = np.stack(
        [_per_patch(scene.mask(i)) for i in range(len(scene.shapes))]
        or [np.zeros((GRID, GRID), dtype=np.int64)]
    )
    for index, shape in enumerate(scene.shapes):
        mine = (covered.argmax(0) == index) & (covered[index] >= 8)
        labels[mine, :7] = (
            KINDS.index(shape.kind),
            list(COLOURS).index(shape.colour),
            index,
            *shape.box,
        )
    if scene.word:
        _add_word(labels, scene.word)
    return labels.reshape(GRID * GRID, -1)


def _per_patch(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels of a mask in each patch, [GRID, GRID]."""
    counted: NDArray[np.int64] = mask.reshape(GRID, PATCH, GRID, PATCH).sum((1, 3))
    return counted


def _add_word(labels: NDArray[np.int64], word: Word) -> None:
    """Label the patches of a word: the letter that fills most of each, and the whole word."""
    cover = []
    for y0, x0, y1, x1 in word.letters:
        ink = np.zeros((SIDE, SIDE), dtype=np.bool_)
        ink[y0:y1, x0:x1] = True
        cover.append(_per_patch(ink))
    area = np.stack(cover)
    touched = area.max(0) >= 20
    letters = np.array([ord(letter) - ord("A") for letter in word.text])
    labels[touched, 0] = len(KINDS) + letters[area.argmax(0)[touched]]
    labels[touched, 7 : 7 + _LONGEST] = [*letters, *[_LETTERS] * (_LONGEST - len(letters))]


class Heads(nn.Module):
    """One linear layer for all the predictions of a patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [
            len(KINDS) + _LETTERS + 1,
            len(COLOURS),
            4,
            4 * (SIDE + 1),
            4,
            _LONGEST * (_LETTERS + 1),
        ]
        self.linear = nn.Linear(width, sum(self.sizes))
        places = torch.arange(SIDE + 1)
        self.register_buffer(
            "near", torch.softmax(-0.5 * (places[:, None] - places[None]) ** 2, dim=1)
        )
        self.register_buffer("corner", _corners())

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Weighted losses of features [batch, patches, width] against the patches' labels."""
        kind, colour, rank, box, offset, word = (
            self.linear(features).float().split(self.sizes, dim=-1)
        )
        edges = labels[..., 3:7]
        kinds = labels[..., 0]
        shapes = torch.where(kinds < len(KINDS), kinds, _NONE)
        letters = torch.where((kinds >= len(KINDS)) & (kinds < BACKGROUND), kinds, _NONE)
        return {
            "background": _label_loss(kind, kinds),
            # Shapes and letters once more, else the background, most patches, would dominate.
            "shape": 2 * _label_loss(kind, shapes),
            "letter": 2 * _label_loss(kind, letters),
            "colour": _label_loss(colour, labels[..., 1]),
            "rank": 0.5 * _label_loss(rank, labels[..., 2]),
            "box": self._box_loss(box.unflatten(-1, (4, -1)), edges),
            "offset": self._offset_loss(offset, edges),
            "word": 0.5 * _label_loss(word.unflatten(-1, (_LONGEST, -1)), labels[..., 7:]),
        }

    def _offset_loss(self, offset: Tensor, edges: Tensor) -> Tensor:
        """Distance, in patches, of the four edges from the patch's own corner."""
        labelled = edges[..., 0] != _NONE
        target = (edges - self.corner) / PATCH  # type: ignore[operator]
        return smooth_l1_loss(offset[labelled], target[labelled], beta=0.1)

    def _box_loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        """Cross entropy against a bell around the edge: a near miss is nearly right."""
        labelled = edges[..., 0] != _NONE
        target: Tensor = self.near[edges[labelled]]  # type: ignore[index]
        return -(target * log_softmax(scores[labelled], dim=-1)).sum(-1).mean()


def _corners() -> Tensor:
    """Row and column, twice, of each patch's first pixel, [patches, 4]."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return PATCH * torch.stack([rows, columns, rows, columns], dim=-1).flatten(0, 1)


def wave_positions(width: int) -> Tensor:
    """Sines and cosines of row and column: the initial position table."""
    rates = 10 ** (-torch.arange(width // 4) / (width // 4))
    rows, columns = (_corners()[:, i, None] / PATCH * rates for i in (0, 1))
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)


def _label_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over the patches that have a label; zero if a batch has none."""
    flat, target = scores.flatten(0, -2), labels.flatten()
    labelled = target != _NONE
    return cross_entropy(flat[labelled], target[labelled]) if labelled.any() else flat.sum() * 0


def pixel_values(scenes: list[Scene]) -> Tensor:
    """[batch, 3, SIDE, SIDE] from -1 to 1, as the processor makes them."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def pretrain(
    tower: SiglipVisionModel, heads: Heads, *, steps: int, rate: float, part: Part, saved: Path
) -> None:
    """Train tower and heads in place; the state is saved now and then, and taken up again."""
    both = nn.ModuleDict({"tower": tower, "heads": heads})
    optimizer = MixedOptimizer(both, steps=steps, rate=rate, part=part)
    optimizer.resume(saved)
    for step in range(optimizer.step_number, steps):
        scenes = [draw("train", number) for number in part.images(step, IMAGES_PER_STEP)]
        features = tower(pixel_values(scenes).bfloat16()).last_hidden_state
        losses = heads(features, patch_labels(scenes))
        optimizer.step(total(losses))
        log_and_save(optimizer, "vision", losses, saved)
    optimizer.finish()


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of named losses."""
    return torch.stack(list(losses.values())).sum()


def log_and_save(
    optimizer: MixedOptimizer, stage: str, losses: Mapping[str, Tensor], saved: Path
) -> None:
    """Print the first process's losses every 50 steps, and save the state every 500."""
    step = optimizer.step_number
    if step % 50 == 0 and optimizer.part.rank == 0:
        named = ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
        print(f"{time.strftime('%H:%M:%S')} {stage} step {step}: {named}", flush=True)
    if step % 500 == 0:
        optimizer.save(saved)
