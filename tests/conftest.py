"""What the tests share: the sample model's bundle, and PaliGemmas of any small size.

A tiny checkpoint is made by transformers' own classes with random weights, so nothing is
downloaded and nothing of ours takes part in making the original.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    from paligemma_edge import PaliGemma
    from paligemma_edge.runtime.loading.loaded_model import LoadedModel
    from tests.helpers.fake_hub import Hub

# Under nohup it is ignored, and processes that the tests start would ignore it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No clock decides a test: a busy machine is not a failure.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

ALL_CORES = os.sched_getaffinity(0)
# Each worker has a core of its own: the threads of two workers on all cores would wait for each
# other. Here and not in a hook, since torch counts its cores once, and a conftest below imports it.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(ALL_CORES)
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "samples" / "shapes"
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "onnx-ir")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
IMAGE_ID, ROWS = 2152, 2176  # of the sample model's tokenizer

# Prefixes of transformers 5.23's own names (layout C), in the other layouts.
LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "A": {
        r"^model\.vision_tower\.": "vision_tower.vision_model.",
        r"^model\.multi_modal_projector\.": "multi_modal_projector.",
        r"^model\.language_model\.": "language_model.model.",
    },
    "B": {r"^model\.vision_tower\.": "model.vision_tower.vision_model."},
    "C": {},
}
# All that the released 3B models say of their text models; transformers fills in the rest.
HUB_TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "model_type",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
HUB_GEMMA_FIELDS = (*HUB_TEXT_FIELDS, "num_attention_heads")

MakeCheckpoint = Callable[..., Path]


def pytest_report_header() -> list[str]:
    versions = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    from paligemma_edge.runtime.device.ort import ort

    return [", ".join(versions), f"providers: {', '.join(ort.get_available_providers())}"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    from paligemma_edge.runtime.system.linux import usable_cores

    return usable_cores()


@pytest.fixture(autouse=True)
def _cores(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give a test with the marker `all_cores` what its worker has not: several threads at once."""
    own = os.sched_getaffinity(0)
    if request.node.get_closest_marker("all_cores"):
        os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hub]:
    from tests.helpers.fake_hub import running_hub

    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(hub_server: Hub, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub that huggingface_hub takes for its own."""
    from huggingface_hub import constants

    address = hub_server.address
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub_server.reset()
    return hub_server


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no token, and no way out to the Hub itself."""
    from huggingface_hub import constants

    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    return SHAPES / "checkpoint"


@pytest.fixture(scope="session")
def shapes_images() -> Path:
    return ROOT / "samples" / "images"


@pytest.fixture(scope="session")
def shapes_bundle(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, exported once. Not to be changed; `shapes_copy` is."""
    from paligemma_edge.export.exporter import export

    bundle = tmp_path_factory.mktemp("shapes") / "shapes.bundle"
    export(shapes_checkpoint, bundle, mask_decoder=shapes_checkpoint / "vae-oid.npz")
    return bundle


@pytest.fixture
def shapes_copy(shapes_bundle: Path, tmp_path: Path) -> Path:
    """The sample model's bundle, to be changed."""
    return Path(shutil.copytree(shapes_bundle, tmp_path / "copy.bundle"))


@pytest.fixture(scope="session")
def shapes_model(shapes_bundle: Path) -> PaliGemma:
    from paligemma_edge import PaliGemma

    return PaliGemma(shapes_bundle, device="cpu")


@pytest.fixture(scope="session")
def shapes_loaded(shapes_model: PaliGemma) -> LoadedModel:
    """The same without the facade: its engine and its pipeline."""
    return shapes_model._loaded


@pytest.fixture(scope="session")
def make_checkpoint(
    shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeCheckpoint:
    """Write a random checkpoint: sizes, `layout` of its keys, `dialect` of its config, `dtype`.

    With `model_type` "gemma2" in `text` it is a PaliGemma 2.
    """

    def make(
        *,
        vision: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        layout: str = "A",
        dialect: str = "transformers",
        dtype: str = "float32",
    ) -> Path:
        folder = tmp_path_factory.mktemp("tiny")
        model = random_model(dict(vision or {}), dict(text or {}))
        write_weights(model.state_dict(), folder, layout, dtype)
        config = {**model.config.to_dict(), "dtype": dtype}
        write_json(folder / "config.json", as_on_the_hub(config) if dialect == "hub" else config)
        for name in TOKENIZER_FILES:
            shutil.copy(shapes_checkpoint / name, folder)
        encoder = config["vision_config"]
        write_preprocessor(folder, encoder["image_size"], encoder["patch_size"])
        return folder

    return make


def random_model(vision: dict[str, Any], text: dict[str, Any]) -> PaliGemmaForConditionalGeneration:
    """Weights large enough that every part of the model matters to the logits."""
    import torch
    from transformers import (
        Gemma2Config,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    vision = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2) | vision
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": 56, **vision}
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, **text}
    text = {"hidden_size": 48, "intermediate_size": 64, "head_dim": 16, **text}
    vision |= {"vision_use_head": False, "projection_dim": text["hidden_size"]}
    second = text.pop("model_type", "gemma") == "gemma2"
    special: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    whole: dict[str, Any] = {
        "vision_config": SiglipVisionConfig(**{"patch_size": 14, **vision}),
        "text_config": (Gemma2Config if second else GemmaConfig)(
            **text, **special, vocab_size=ROWS
        ),
        "image_token_index": IMAGE_ID,
        "projection_dim": text["hidden_size"],
        "hidden_size": text["hidden_size"],
        **special,
    }
    config = PaliGemmaConfig(**whole)
    model = PaliGemmaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(text["hidden_size"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            # Without this the tied head says the last token again and again.
            loud = 8 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            parameter.normal_(0, loud * fan_in**-0.5, generator=generator)
            if second and "layers" in name and re.search(r"post_\w+_layernorm", name):
                parameter.add_(7)  # what a layer adds is normalized: its gain makes it loud
    return model


def write_weights(state: Mapping[str, torch.Tensor], folder: Path, layout: str, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in state.items():
        if name == "lm_head.weight":  # tied, and absent from released checkpoints
            continue
        for pattern, prefix in LAYOUTS[layout].items():
            name = re.sub(pattern, prefix, name)  # noqa: PLW2901 - renamed step by step
        tensors[name] = tensor.to(getattr(torch, dtype)).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_on_the_hub(config: dict[str, Any]) -> dict[str, Any]:
    second = config["text_config"]["model_type"] == "gemma2"
    fields = HUB_TEXT_FIELDS if second else HUB_GEMMA_FIELDS
    text = {name: config["text_config"][name] for name in fields}
    vision = dict(config["vision_config"])
    for name in ("dtype", "hidden_act", "layer_norm_eps", "attention_dropout", "num_channels"):
        vision.pop(name, None)
    strays = {"num_image_tokens": 256, "projector_hidden_act": "gelu_fast", "num_positions": 256}
    kept = {name: config[name] for name in ("model_type", "image_token_index", "hidden_size")}
    return {
        **kept,
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "projection_dim": config["projection_dim"],
        "torch_dtype": config["dtype"],
        "text_config": {**text, "torch_dtype": config["dtype"], "num_image_tokens": 256},
        "vision_config": {**vision, **strays, "model_type": "siglip_vision_model"},
    }


def write_preprocessor(folder: Path, side: int, patch: int) -> None:
    config = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": None,
        "size": {"height": side, "width": side},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_seq_length": (side // patch) ** 2,
    }
    write_json(folder / "preprocessor_config.json", config)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")
