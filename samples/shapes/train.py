"""Trains the sample model from nothing: tokenizer, mask VQ-VAE, vision tower, PaliGemma.

    python -m samples.shapes.train

Each stage saves its state in the work folder. A command that is started again goes on from there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from samples.shapes import checkpoint_files, mask_vae, parallel, tokenizer
from samples.shapes.dataset import IGNORED, ExampleCollator, training_example
from samples.shapes.evaluate import CHECKPOINT
from samples.shapes.optimizer import MixedOptimizer
from samples.shapes.parallel import Part
from samples.shapes.tasks import CodeTable
from samples.shapes.vision_pretraining import (
    POSITIONS,
    Heads,
    log_and_save,
    patch_labels,
    pixel_values,
    pretrain,
    total,
    wave_positions,
)

IMAGES_PER_STEP = 32  # each with two to eight questions
BATCHES = 4  # of rows of like length, from the images of one process
VISION_LOSS_WEIGHT = 0.25  # of the vision tower's own loss in the last stage
TOWER_RATE = 0.5  # of the learning rate, for the tower in the last stage


@dataclass(frozen=True)
class TrainingPlan:
    """Where the stages save their files, and how long each of them trains at which rate."""

    work: Path
    mask_steps: int
    vision_steps: int
    vision_rate: float
    steps: int
    rate: float
    processes: int


def train_tokenizer(work: Path) -> bytes:
    """Stage 1: the tokenizer."""
    path = work / "tokenizer.model"
    if not path.exists():
        path.write_bytes(tokenizer.train(tokenizer.corpus()))
    return path.read_bytes()


def train_masks(work: Path, steps: int) -> mask_vae.MaskVae:
    """Stage 2: the mask VQ-VAE."""
    vae, path = mask_vae.MaskVae(), work / "vae.pt"
    if not path.exists():
        trained = mask_vae.train(steps, seed=0)
        np.savez(work / "vae-oid.npz", **mask_vae.inference_arrays(trained))  # type: ignore[arg-type]
        torch.save(trained.state_dict(), path)
    vae.load_state_dict(torch.load(path))
    return vae.eval()


def new_model() -> PaliGemmaForConditionalGeneration:
    """The untrained model, the same every time."""
    torch.manual_seed(0)
    model: PaliGemmaForConditionalGeneration = PaliGemmaForConditionalGeneration._from_config(  # type: ignore[no-untyped-call]
        checkpoint_files.config(), attn_implementation="eager"
    )
    positions = model.model.vision_tower.get_parameter(POSITIONS)
    positions.data.copy_(wave_positions(positions.shape[1]))
    first, count = tokenizer.VOCABULARY, len(tokenizer.LOCATIONS)
    embeddings = model.get_input_embeddings().get_parameter("weight")
    embeddings.data[first : first + count] = wave_locations(count, embeddings.shape[1])
    return model


def wave_locations(count: int, width: int) -> Tensor:
    """Initial embeddings of the location tokens: neighbours are alike, as places are."""
    rates = torch.logspace(0, 6, width // 2, base=2)  # half turns from the first to the last
    angles = torch.linspace(0, torch.pi, count)[:, None] * rates
    return 0.02 * 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)


def train_vision(part: Part, plan: TrainingPlan) -> None:
    """Stage 3, in one process of several: pre-train the vision tower."""
    tower, heads = new_model().model.vision_tower, new_heads()
    saved = plan.work / "vision-state.pt"
    pretrain(tower, heads, steps=plan.vision_steps, rate=plan.vision_rate, part=part, saved=saved)
    if part.rank == 0:
        torch.save((tower.state_dict(), heads.state_dict()), plan.work / "vision.pt")


def new_heads() -> Heads:
    """The vision tower's untrained heads, the same every time."""
    torch.manual_seed(1)
    vision = checkpoint_files.config().vision_config
    assert isinstance(vision, SiglipVisionConfig)
    return Heads(vision.hidden_size)


def train_answers(part: Part, plan: TrainingPlan, codes: CodeTable) -> None:
    """Stage 4, in one process of several: train the whole model."""
    model, heads = new_model(), new_heads()
    vision = torch.load(plan.work / "vision.pt")
    for module, state in zip((model.model.vision_tower, heads), vision, strict=True):
        module.load_state_dict(state)
    pieces = spm.SentencePieceProcessor(model_file=str(plan.work / "tokenizer.model"))
    both = nn.ModuleDict({"model": model, "heads": heads})
    factors = {"model.model.vision_tower": TOWER_RATE, "heads": TOWER_RATE}
    optimizer = MixedOptimizer(both, steps=plan.steps, rate=plan.rate, part=part, factors=factors)
    saved = plan.work / "answers-state.pt"
    optimizer.resume(saved)
    for step in range(optimizer.step_number, plan.steps):
        numbers = part.images(step, IMAGES_PER_STEP)
        losses = answer_losses(model, heads, numbers, codes, ExampleCollator(pieces))
        optimizer.step(total(losses))
        log_and_save(optimizer, "answers", losses, saved)
    optimizer.finish()
    if part.rank == 0:
        torch.save(model.state_dict(), plan.work / "answers.pt")


def answer_losses(
    model: PaliGemmaForConditionalGeneration,
    heads: Heads,
    numbers: range,
    codes: CodeTable,
    collate: ExampleCollator,
) -> dict[str, Tensor]:
    """The answers' loss and a share of the vision tower's, which runs once per image."""
    examples = [training_example(number, codes) for number in numbers]
    scenes = [example.scene for example in examples]
    vision = model.get_image_features(pixel_values(scenes).bfloat16())
    answers, weight = torch.zeros(()), torch.zeros(())
    for batch in collate(examples, BATCHES):
        index, labels = batch.pop("image_index"), batch.pop("labels")[:, 1:]
        features = BaseModelOutputWithPooling(pooler_output=vision.pooler_output[index])
        hidden = model.model(
            **batch, mm_encoder_outputs={"image": features}, use_cache=False
        ).last_hidden_state
        batch_total, batch_weight = _token_loss(model, hidden[:, :-1], labels)
        answers, weight = answers + batch_total, weight + batch_weight
    vision_loss = total(heads(vision.last_hidden_state, patch_labels(scenes)))
    return {"answers": answers / weight, "vision": VISION_LOSS_WEIGHT * vision_loss}


def _token_loss(
    model: PaliGemmaForConditionalGeneration, hidden: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sum over the answers' tokens, and the weights' sum.

    A token counts one by the square root of its answer's length: else masks, which have the most
    tokens by far, would count for more than all the rest.
    """
    answered = labels != IGNORED
    weights = (1 / answered.sum(1, keepdim=True).sqrt()).expand_as(labels)[answered]
    logits = model.lm_head(hidden[answered]).float()
    losses = cross_entropy(logits, labels[answered], reduction="none")
    return (losses * weights).sum(), weights.sum()


def main() -> None:
    """Run all stages, then write the checkpoint."""
    plan, out = _parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    plan.work.mkdir(parents=True, exist_ok=True)
    spm_model = train_tokenizer(plan.work)
    vae = train_masks(plan.work, plan.mask_steps)
    _say("mask VQ-VAE", start)
    rendezvous = plan.work / "rendezvous"
    if not (plan.work / "vision.pt").exists():
        parallel.run(train_vision, plan.processes, rendezvous, plan)
        _say("vision tower", start)
    if not (plan.work / "answers.pt").exists():
        codes = mask_vae.code_table(vae)
        parallel.run(train_answers, plan.processes, rendezvous, plan, codes)
    model = new_model()
    model.load_state_dict(torch.load(plan.work / "answers.pt"))
    checkpoint_files.write(model, spm_model, plan.work / "vae-oid.npz", out)
    _say("PaliGemma", start)


def _say(stage: str, start: float) -> None:
    print(f"{stage} done after {time.monotonic() - start:.0f} s", flush=True)


def _parse_args() -> tuple[TrainingPlan, Path]:
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/shapes"), help="files of finished stages"
    )
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint to write")
    parser.add_argument("--mask-steps", type=int, default=800, help="of stage 2")
    parser.add_argument("--vision-steps", type=int, default=2400, help="of stage 3")
    parser.add_argument("--vision-rate", type=float, default=3e-3, help="learning rate of stage 3")
    parser.add_argument("--steps", type=int, default=2200, help="of stage 4")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate of stage 4")
    parser.add_argument(
        "--processes", type=int, default=2, choices=(1, 2, 4, 8, 16), help="one for each core"
    )
    options = vars(parser.parse_args())
    out = options.pop("out")
    return TrainingPlan(**options), out


if __name__ == "__main__":
    main()
