"""A folder with all the files that the examples in the docs name, made from the sample model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.markdown import ROOT

CHECKPOINT = ROOT / "samples" / "shapes" / "checkpoint"
SAMPLE_IMAGES = ROOT / "samples" / "images"
ADAPTERS = ("cats", "meters")
VARIANTS = ("cpu-int8", "cpu-int4")  # beside the lossless one
# What stands for the names of checkpoints: the sample model's.
CHECKPOINTS = (
    "paligemma-3b-mix-224",
    "paligemma-3b-pt-224",
    "paligemma2-3b-mix-224",
    "google/paligemma-3b-mix-224",
)
IMAGES: Mapping[str, str] = {
    "photo.jpg": "00",
    "street.jpg": "01",
    "sign.jpg": "02",
    "meter.jpg": "03",
    "left.jpg": "04",
    "right.jpg": "05",
    "photos/a.jpg": "06",
    "photos/b.jpg": "07",
    "photos/more/c.jpg": "08",
}


def build_folder(folder: Path) -> None:
    """Fill a folder: a bundle with variants and adapters, images, a video, a list, checkpoints."""
    _link_checkpoints(folder)
    for name, sample in IMAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(SAMPLE_IMAGES / f"{sample}.png") as image:
            image.convert("RGB").resize((224, 224)).save(folder / name, quality=95)
    _write_clip(folder / "clip.mp4")
    lines = [{"image": name, "prefix": "caption en"} for name in ("photo.jpg", "sign.jpg")]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ADAPTERS:
        _write_lora(folder / f"{name}-lora", seed=ADAPTERS.index(name))
    _write_bundle(folder)


def copy_folder(folder: Path, target: Path) -> Path:
    """A folder of its own for a page: what runs there may write into it, and into the bundle."""
    return Path(shutil.copytree(folder, target, symlinks=True))


def _link_checkpoints(folder: Path) -> None:
    for name in CHECKPOINTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(CHECKPOINT)
    (folder / "vae-oid.npz").symlink_to(CHECKPOINT / "vae-oid.npz")
    (folder / "samples").symlink_to(ROOT / "samples")
    (folder / "build").mkdir()
    (folder / "build" / "shapes.bundle").symlink_to(Path("..", "mix.bundle"))


def _write_bundle(folder: Path) -> None:
    from paligemma_edge.export.exporter import export
    from paligemma_edge.export.lora.add_to_bundle import add_adapter
    from paligemma_edge.quantize.fidelity.questions import sample_questions
    from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
    from paligemma_edge.quantize.recipes.recipe import load_recipe

    bundle = folder / "mix.bundle"
    export(CHECKPOINT, bundle, mask_decoder=CHECKPOINT / "vae-oid.npz")
    quantize(
        bundle,
        [load_recipe(name) for name in VARIANTS],
        QuantizeOptions(questions=tuple(sample_questions()[:1]), calibrate=False, report=False),
    )
    for name in ADAPTERS:
        # The others can be prepacked: a variant with adapters cannot.
        add_adapter(bundle, folder / f"{name}-lora", name, variants=["cpu-fp32", "cpu-int8"])


def _write_clip(path: Path) -> None:
    """A second of the sample images, four frames of them."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for number in range(4):
            with Image.open(SAMPLE_IMAGES / f"{number:02}.png") as image:
                pixels = np.asarray(image.convert("RGB"))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_lora(folder: Path, seed: int) -> None:
    """An adapter of the decoder's queries, as PEFT saves it."""
    from safetensors.numpy import save_file

    text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    width, rank = text["hidden_size"], 4
    shapes = {"A": (rank, width), "B": (text["num_attention_heads"] * text["head_dim"], rank)}
    random, tensors = np.random.default_rng(seed), {}
    for layer in range(text["num_hidden_layers"]):
        for part, shape in shapes.items():
            module = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj"
            noise = random.normal(0, 0.02, shape).astype(np.float32)
            tensors[f"{module}.lora_{part}.weight"] = noise
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
