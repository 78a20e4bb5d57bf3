"""The mask VQ-VAE: a 64x64 silhouette as 16 of 128 codes, and back.

The decoder has the architecture and the array names of PaliGemma's own `vae-oid.npz`. Training is
short: an autoencoder first, then K-means on its latents gives the codebook, then both halves settle
with the codebook in place.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from samples.shapes.scenes import KINDS, SIZES, silhouette

CODES, WIDTH, CODE_SIDE, MASK_SIDE = 128, 512, 4, 64


class ResBlock(nn.Module):
    """Three convolutions and the skip around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same."""
        out: Tensor = x + self.net(x)
        return out


def _decoder() -> nn.Sequential:
    ups = [(128, 128), (128, 64), (64, 32), (32, 16)]
    grow = [layer for a, b in ups for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(WIDTH, 128, 1),
        nn.ReLU(),
        ResBlock(128),
        ResBlock(128),
        *grow,
        nn.Conv2d(16, 1, 1),
    )


def _encoder() -> nn.Sequential:
    downs = [(1, 16), (16, 32), (32, 64), (64, 128)]
    shrink = [layer for a, b in downs for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(*shrink, ResBlock(128), nn.Conv2d(128, WIDTH, 1))


class MaskVae(nn.Module):
    """Encoder, codebook and decoder; masks are [batch, 1, 64, 64] with -1 outside and 1 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(), _decoder()
        self.codebook = nn.Parameter(torch.zeros(CODES, WIDTH))

    def latents(self, masks: Tensor) -> Tensor:
        """One vector per cell, [batch, 16, 512], rows first."""
        cells: Tensor = self.encoder(masks)
        return cells.flatten(2).transpose(1, 2)

    def codes(self, latents: Tensor) -> Tensor:
        """The nearest code of each cell, [batch, 16]."""
        flat = latents.flatten(0, 1)
        return torch.cdist(flat, self.codebook).argmin(1).view(latents.shape[:2])

    def paint(self, latents: Tensor) -> Tensor:
        """[batch, 16, 512] to masks."""
        grid = latents.transpose(1, 2).reshape(-1, WIDTH, CODE_SIDE, CODE_SIDE)
        masks: Tensor = self.decoder(grid)
        return masks

    def encode(self, masks: Tensor) -> Tensor:
        """Masks to codes."""
        return self.codes(self.latents(masks))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to masks."""
        return self.paint(self.codebook[codes])


def square_mask(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A mask's crop stretched to 64x64 with values from -1 to 1."""
    stretched = Image.fromarray(mask.astype(np.float32)).resize(
        (MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR
    )
    return np.asarray(stretched) * 2 - 1


def code_table(vae: MaskVae) -> dict[tuple[str, int, int], tuple[int, ...]]:
    """The codes of every silhouette that a scene can have, by kind, height and width."""
    keys = sorted({(kind, *silhouette(kind, h, w).shape) for kind in KINDS for h, w in _sides()})
    drawn = {
        (kind, *silhouette(kind, h, w).shape): silhouette(kind, h, w)
        for kind in KINDS
        for h, w in _sides()
    }
    batches = [keys[i : i + 128] for i in range(0, len(keys), 128)]
    table: dict[tuple[str, int, int], tuple[int, ...]] = {}
    with torch.inference_mode():
        for batch in batches:
            codes = vae.encode(_tensor([drawn[key] for key in batch]))
            table |= {key: tuple(row) for key, row in zip(batch, codes.tolist(), strict=True)}
    return table


def _sides() -> list[tuple[int, int]]:
    return [
        (h, w)
        for low, high in SIZES.values()
        for h in range(low, high + 1)
        for w in range(low, high + 1)
    ]


def _tensor(masks: list[NDArray[np.bool_]]) -> Tensor:
    return torch.from_numpy(np.stack([square_mask(m) for m in masks]))[:, None]


def _random_mask(rng: np.random.Generator) -> NDArray[np.bool_]:
    """A silhouette of any size; one in three is rotated, for a wider range of masks."""
    kind = str(rng.choice(KINDS))
    height, width = (int(n) for n in rng.integers(16, 49, 2))
    mask = silhouette(kind, height, width)
    if rng.random() < 2 / 3:
        return mask
    wide = Image.fromarray(np.pad(mask, 12)).rotate(float(rng.uniform(0, 360)), expand=True)
    turned = np.asarray(wide)
    rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def train(steps: int, seed: int) -> MaskVae:
    """A trained VQ-VAE."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = MaskVae()
    _settle(vae, rng, steps // 2, quantised=False)
    with torch.inference_mode():
        pool = vae.latents(_tensor([_random_mask(rng) for _ in range(2000)])).flatten(0, 1).clone()
    vae.codebook.data.copy_(_kmeans(pool, rng))
    _settle(vae, rng, steps - steps // 2, quantised=True)
    return vae.eval()


def _kmeans(points: Tensor, rng: np.random.Generator) -> Tensor:
    centres = points[torch.from_numpy(rng.choice(len(points), CODES, replace=False))].clone()
    for _ in range(25):
        nearest = torch.cdist(points, centres).argmin(1)
        for code in range(CODES):
            members = points[nearest == code]
            spare = points[int(rng.integers(len(points)))]
            centres[code] = members.mean(0) if len(members) else spare
    return centres


def _settle(vae: MaskVae, rng: np.random.Generator, steps: int, *, quantised: bool) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        masks = _tensor([_random_mask(rng) for _ in range(32)])
        loss = _loss(vae, masks, quantised=quantised)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _loss(vae: MaskVae, masks: Tensor, *, quantised: bool) -> Tensor:
    latents = vae.latents(masks)
    if not quantised:
        return nn.functional.mse_loss(vae.paint(latents), masks) + 1e-3 * latents.square().mean()
    chosen = vae.codebook[vae.codes(latents.detach())]
    through = latents + (chosen - latents).detach()
    tie = nn.functional.mse_loss(chosen, latents.detach()) + 0.25 * nn.functional.mse_loss(
        latents, chosen.detach()
    )
    return nn.functional.mse_loss(vae.paint(through), masks) + tie


def reconstruction_iou(vae: MaskVae, count: int, seed: int) -> float:
    """Mean IoU, at 64x64, of fresh masks and their reconstructions."""
    rng = np.random.default_rng(seed)
    masks = _tensor([_random_mask(rng) for _ in range(count)])
    with torch.inference_mode():
        back = vae.decode(vae.encode(masks)) > 0
    inside = masks > 0
    shared, either = (inside & back).sum((1, 2, 3)), (inside | back).sum((1, 2, 3))
    return float((shared / either).mean())


def inference_arrays(vae: MaskVae) -> dict[str, NDArray[np.float32]]:
    """The arrays of `vae-oid.npz`: codebook and decoder."""
    arrays = {
        f"decoder.{name}": value.detach().numpy()
        for name, value in vae.decoder.state_dict().items()
    }
    return {"_vq_vae._embedding": vae.codebook.detach().numpy(), **arrays}


def main() -> None:
    """Train, report the IoU, and save the inference arrays and the whole network."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.mask_vae", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("build/shapes"), help="folder to write")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    start = time.monotonic()
    vae = train(args.steps, seed=0)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "vae-oid.npz", **inference_arrays(vae))  # type: ignore[arg-type]
    torch.save(vae.state_dict(), args.out / "vae.pt")
    iou = reconstruction_iou(vae, 500, seed=1)
    print(f"reconstruction IoU {iou:.4f}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
