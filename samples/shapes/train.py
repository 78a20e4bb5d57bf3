"""Trains the sample model from nothing: tokenizer, mask VQ-VAE, vision tower, PaliGemma.

    python -m samples.shapes.train

Each stage saves a file in the work folder and is skipped when that file exists.
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
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PaliGemmaForConditionalGeneration, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from samples.shapes import checkpoint_files, mask_vae, tokenizer
from samples.shapes.dataset import ExampleCollator, ShapesDataset
from samples.shapes.evaluate import CHECKPOINT
from samples.shapes.vision_pretraining import Heads, pretrain, warm_cosine

IMAGES_PER_STEP = 5  # each with two to six questions
VISION_LOSS_WEIGHT = 0.25  # of the vision tower's own loss in the last stage


@dataclass(frozen=True)
class TrainingPlan:
    """Where the stages save their files, and the steps and learning rate of the last one."""

    work: Path
    steps: int
    rate: float


class SharedImageTrainer(Trainer):
    """A Trainer that runs the vision tower once per image for all the questions about it.

    The loss is the model's own plus a share of the vision tower's, whose training goes on.
    """

    heads: Heads

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002  the Trainer's signature
    ) -> Tensor | tuple[Tensor, object]:
        """The loss of one batch."""
        rest = dict(inputs)
        labels, image_index = rest.pop("patch_labels"), rest.pop("image_index")
        vision = model.get_image_features(rest.pop("pixel_values"))  # type: ignore[operator]
        features = BaseModelOutputWithPooling(pooler_output=vision.pooler_output[image_index])
        tail = int(rest["token_type_ids"].sum(1).max()) + 1  # what comes before needs no logits
        rest["labels"] = rest["labels"][:, -tail:]
        outputs = model(**rest, mm_encoder_outputs={"image": features}, logits_to_keep=tail)
        vision_loss = self.heads(vision.last_hidden_state.float(), labels)
        loss = outputs.loss + VISION_LOSS_WEIGHT * vision_loss
        return (loss, outputs) if return_outputs else loss


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
    return PaliGemmaForConditionalGeneration(checkpoint_files.config())


def train_vision(model: PaliGemmaForConditionalGeneration, work: Path, steps: int) -> Heads:
    """Stage 3: pre-train the vision tower in place."""
    tower, path = model.model.vision_tower, work / "vision.pt"
    heads = Heads(tower.config.hidden_size)
    if not path.exists():
        heads = pretrain(tower, steps)
        torch.save((tower.state_dict(), heads.state_dict()), path)
    for module, state in zip((tower, heads), torch.load(path), strict=True):
        module.load_state_dict(state)
    return heads


def train_answers(
    model: PaliGemmaForConditionalGeneration,
    heads: Heads,
    dataset: ShapesDataset,
    collator: ExampleCollator,
    plan: TrainingPlan,
) -> None:
    """Stage 4: train the whole model in place."""
    arguments = TrainingArguments(
        output_dir=str(plan.work / "runs"),
        max_steps=plan.steps,
        per_device_train_batch_size=IMAGES_PER_STEP,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        save_steps=500,
        save_only_model=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        seed=0,
    )
    trainer = SharedImageTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=dataset,
        optimizers=_optimizer(model, heads, plan),
    )
    trainer.heads = heads
    trainer.train()


def _optimizer(model: nn.Module, heads: nn.Module, plan: TrainingPlan) -> tuple[AdamW, LambdaLR]:
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = AdamW(parameters, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.01)
    return optimizer, LambdaLR(optimizer, lambda step: warm_cosine(step, plan.steps))


def main() -> None:
    """Run all stages, then write the checkpoint."""
    args = _parse_args()
    start = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    spm_model = train_tokenizer(args.work)
    vae = train_masks(args.work, args.mask_steps)
    model = new_model()
    heads = train_vision(model, args.work, args.vision_steps)
    if args.start is not None:
        model = PaliGemmaForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    dataset = ShapesDataset(args.steps * IMAGES_PER_STEP, mask_vae.code_table(vae), args.skip)
    collator = ExampleCollator(spm.SentencePieceProcessor(model_proto=spm_model))
    train_answers(model, heads, dataset, collator, TrainingPlan(args.work, args.steps, args.rate))
    checkpoint_files.write(model, spm_model, args.work / "vae-oid.npz", args.out)
    print(f"{time.monotonic() - start:.0f} s")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/shapes"), help="files of finished stages"
    )
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint to write")
    parser.add_argument("--mask-steps", type=int, default=1000, help="of stage 2")
    parser.add_argument("--vision-steps", type=int, default=2700, help="of stage 3")
    parser.add_argument("--steps", type=int, default=4400, help="of stage 4")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of stage 4")
    parser.add_argument("--start", type=Path, help="a checkpoint to continue from")
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="training scenes to skip, such as those of an earlier run",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
