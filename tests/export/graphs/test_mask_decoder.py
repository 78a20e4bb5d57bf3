"""The mask decoder compared with its architecture in torch (PALIGEMMA's VQ-VAE)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from paligemma_edge.export.checkpoint.mask_decoder_weights import SHAPES, read_mask_weights
from paligemma_edge.export.graphs.mask_decoder import build_mask_decoder
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import CheckpointError

Arrays = dict[str, NDArray[np.float32]]


class ResBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)  # type: ignore[no-any-return]


def original() -> nn.Sequential:
    def up(inner: int, outer: int) -> nn.Module:
        return nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)

    return nn.Sequential(
        nn.Conv2d(512, 128, 1),
        nn.ReLU(),
        ResBlock(),
        ResBlock(),
        up(128, 128),
        nn.ReLU(),
        up(128, 64),
        nn.ReLU(),
        up(64, 32),
        nn.ReLU(),
        up(32, 16),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    torch.manual_seed(0)
    weights = {f"decoder.{k}": v.detach().numpy() for k, v in original().named_parameters()}
    codebook = np.random.default_rng(0).standard_normal((128, 512)).astype(np.float32)
    return {"_vq_vae._embedding": codebook, **weights}


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def decode(path: Path, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    model = build_mask_decoder(read_mask_weights(path))
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["mask"], {"segmentation_codes": codes})[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_masks_equal_the_original(arrays: Arrays, tmp_path: Path, dtype: type[np.floating]) -> None:
    stored = {name: array.astype(dtype) for name, array in arrays.items()}
    extra = {"encoder.0.weight": np.zeros(3, np.float32)}  # the shipped file holds an encoder too
    path = save(tmp_path / "vae.npz", {**stored, **extra})
    codes = np.random.default_rng(1).integers(0, 128, (3, 16))
    twin = original()
    twin.load_state_dict(
        {
            k.removeprefix("decoder."): torch.from_numpy(stored[k].astype(np.float32))
            for k in arrays
            if k.startswith("decoder.")
        }
    )
    with torch.inference_mode():
        latent = torch.from_numpy(stored["_vq_vae._embedding"].astype(np.float32)[codes])
        expected = twin(latent.reshape(3, 4, 4, 512).permute(0, 3, 1, 2))[:, 0].numpy()
    masks = decode(path, codes)
    assert masks.shape == (3, 64, 64)
    assert np.abs(masks - expected).max() <= 1e-5 * np.abs(expected).max()


def test_one_error_lists_every_wrong_array(arrays: Arrays, tmp_path: Path) -> None:
    broken = dict(arrays)
    del broken["decoder.12.bias"]
    broken["decoder.0.bias"] = np.zeros(7, np.float32)
    broken["decoder.4.bias"] = np.zeros(128, np.int32)
    with pytest.raises(CheckpointError) as error:
        read_mask_weights(save(tmp_path / "vae.npz", broken))
    for problem in (
        "decoder.12.bias is missing",
        r"decoder.0.bias is [7], wanted [128]",
        "decoder.4.bias is int32",
    ):
        assert problem in str(error.value)


def test_files_that_are_not_an_npz(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_mask_weights(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(CheckpointError, match="not an npz archive"):
        read_mask_weights(tmp_path / "text.npz")
    # A pickle inside must be an error, and not run.
    np.savez(tmp_path / "pickle.npz", **{"decoder.0.bias": np.array([object()])})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"decoder\.0\.bias is \[1\], wanted"):
        read_mask_weights(tmp_path / "pickle.npz")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("empty.npz", "one.npy"):
        with pytest.raises(CheckpointError, match="not an npz archive"):
            read_mask_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder, not a regular file"):
        read_mask_weights(tmp_path)


def test_a_header_is_read_before_its_array(arrays: Arrays, tmp_path: Path) -> None:
    path = save(tmp_path / "vae.npz", {k: v for k, v in arrays.items() if k != "decoder.0.bias"})
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("decoder.0.bias.npy", header.getvalue())
    with pytest.raises(CheckpointError, match=r"decoder.0.bias is \[10000000000000\], wanted"):
        read_mask_weights(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_weights(value: float, arrays: Arrays, tmp_path: Path) -> None:
    bias = np.full(128, value, np.float32)
    with pytest.raises(CheckpointError, match=r"decoder\.0\.bias is not finite"):
        read_mask_weights(save(tmp_path / "vae.npz", {**arrays, "decoder.0.bias": bias}))


def test_a_damaged_archive(arrays: Arrays, tmp_path: Path) -> None:
    path = save(tmp_path / "vae.npz", arrays)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not an npz archive"):
        read_mask_weights(path)


def test_the_list_of_shapes_is_the_architecture(arrays: Arrays) -> None:
    assert {name: array.shape for name, array in arrays.items()} == dict(SHAPES)
