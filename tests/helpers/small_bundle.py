"""A bundle of a few bytes, for tests that do not run its graphs."""

from __future__ import annotations

from pathlib import Path

from paligemma_edge.runtime.bundle.writer import new_bundle
from paligemma_edge.runtime.manifest import (
    SCHEMA_VERSION,
    ImageConfig,
    Manifest,
    ModelConfig,
    TokenizerConfig,
    Variant,
)

GRAPH = "cpu-fp32/decoder.onnx"
WEIGHTS = "cpu-fp32/decoder.onnx.data"
REPORT = "parity/cpu-fp32.json"


def manifest() -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="a test",
        source={"checkpoint": "none"},
        model=ModelConfig(
            family="paligemma",
            image_tokens=4,
            hidden_size=8,
            num_layers=1,
            num_kv_heads=1,
            head_dim=4,
            vocab_size=1160,
            max_length=32,
        ),
        tokenizer=TokenizerConfig(
            file="tokenizer.model",
            pad_id=0,
            eos_ids=(1,),
            bos_id=2,
            newline_id=3,
            first_loc_id=4,
            first_seg_id=1028,
            image_id=1156,
        ),
        image=ImageConfig(
            size=28, resample="bicubic", rescale_factor=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        variants={
            "cpu-fp32": Variant(
                device="cpu",
                recipe="fp32",
                graphs={"decoder": GRAPH},
                weight_dtype="float32",
                compute_dtype="float32",
                memory_bytes=1,
                files=(GRAPH, WEIGHTS),
            )
        },
    )


def write(target: Path, *, overwrite: bool = False, graph: bytes = b"graph") -> None:
    with new_bundle(target, overwrite=overwrite) as writer:
        writer.write(GRAPH, graph)
        writer.write(WEIGHTS, b"weights")
        writer.write("tokenizer.model", b"pieces")
        writer.finish(manifest())
