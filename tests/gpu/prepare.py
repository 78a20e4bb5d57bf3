"""Makes what the tests on a GPU need, on any machine that has the exporter.

    python -m tests.gpu.prepare FOLDER

shapes.bundle    the sample model, lossless and in each variant for CUDA
narrow.bundle    random weights, few and narrow layers, with the heads of PaliGemma 3B
narrow2.bundle   the same with the heads and caps of PaliGemma 2 3B
choice.onnx      the choice of a token from logits, at the vocabulary of the released models
pick.onnx, shortlist.onnx    the graphs beside it, likewise
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from paligemma_edge.export.checkpoint.config import TextConfig, VisionConfig
from paligemma_edge.export.exporter import export
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.quantize.schemes.argmax_head import add_argmax_head, logit_graphs
from paligemma_edge.runtime import contract
from samples.synthetic.models import official
from samples.synthetic.write import write_checkpoint
from tests.gpu.on_gpu import IMAGE_ID, NARROW, NARROW_2, SHAPES, VARIANTS, VOCAB

CHECKPOINT = Path(__file__).parents[2] / "samples" / "shapes" / "checkpoint"
LAYERS, ROWS = 2, 2240


def prepare(folder: Path) -> None:
    """Write all of it into a folder that is new or empty."""
    folder.mkdir(parents=True, exist_ok=True)
    export(CHECKPOINT, folder / SHAPES, mask_decoder=CHECKPOINT / "vae-oid.npz")
    add_variants(folder / SHAPES)
    for name, model in ((NARROW, "paligemma-3b-224"), (NARROW_2, "paligemma2-3b-224")):
        with tempfile.TemporaryDirectory() as checkpoint:
            vision, text = narrowed(*official(model))
            write_checkpoint(Path(checkpoint), vision=vision, text=text)
            export(checkpoint, folder / name)
        add_variants(folder / name)
    graphs = {"choice": choice_graph(), **logit_graphs(VOCAB, IMAGE_ID)}
    for name, graph in graphs.items():
        ir.save(graph, folder / f"{name}.onnx")


def add_variants(bundle: Path) -> None:
    quantize(
        bundle, [load_recipe(v) for v in VARIANTS], QuantizeOptions(calibrate=False, report=False)
    )


def narrowed(vision: VisionConfig, text: TextConfig) -> tuple[VisionConfig, TextConfig]:
    """The same heads, and little else."""
    small: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": 256, "intermediate_size": 512}
    gemma2 = text.gemma2 and dataclasses.replace(text.gemma2, sliding_layers=(True, False))
    eyes = {"num_layers": LAYERS, "num_heads": 4, "hidden_size": 288, "intermediate_size": 512}
    return (
        dataclasses.replace(vision, **eyes),  # heads of 72, as those of the released models
        dataclasses.replace(text, **small, vocab_size=ROWS, gemma2=gemma2),
    )


def choice_graph() -> ir.Model:
    """`given` float [batch, 1, vocab] → the outputs of a decoder that chooses."""
    given, logits = (
        ir.val(name, dtype=ir.DataType.FLOAT, shape=["batch", 1, VOCAB])
        for name in ("given", contract.LOGITS)
    )
    same = ir.node("Identity", [given], outputs=[logits])
    graph = ir.Graph([given], [logits], nodes=[same], opset_imports={"": 23}, name="choice")
    model = ir.Model(graph, ir_version=10)
    add_argmax_head(model, IMAGE_ID)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.prepare", description=__doc__)
    parser.add_argument("folder", type=Path)
    prepare(parser.parse_args().folder)
