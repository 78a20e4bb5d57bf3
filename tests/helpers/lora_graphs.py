"""LoRA graphs of a bundle, run by ONNX Runtime alone with an adapter's inputs, and the original.

Of the runtime only the manifest's names are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.device.ort import ort
from tests.conftest import IMAGE_ID
from tests.helpers import adapters as peft

Array: TypeAlias = NDArray[Any]

IDS, ANSWER = (2, 411, 97, 1203, 108), 640
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def pixels(bundle: Path, seed: int = 1) -> Array:
    side = Bundle.open(bundle).manifest.image.size
    return np.random.default_rng(seed).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)


def inputs(bundle: Path, variant: str, name: str) -> dict[str, Array]:
    """The arrays of an adapter's file for a variant."""
    opened = Bundle.open(bundle)
    with np.load(opened.file(opened.manifest.adapters[name].files[variant])) as stored:
        return dict(stored)


def logits(
    bundle: Path, variant: str, seen: Array, given: Mapping[str, Array] | None = None
) -> Array:
    """Logits [2, vocab] after a prompt and after one step.

    `given` are an adapter's inputs, missing ones get rank 0; None runs the variant's own graphs.
    """
    model = Bundle.open(bundle).manifest.model
    graphs = _Graphs(bundle, variant, given)
    hidden = graphs.run(contract.VISION_ENCODER, {contract.PIXEL_VALUES: seen})
    features = graphs.run(contract.PROJECTOR, hidden)
    config, length = model, model.image_tokens + len(IDS)
    row = (1, config.num_kv_heads, length + 1, config.head_dim)
    pasts = [name for i in range(config.num_layers) for name in contract.past_names(i)]
    presents = [name for i in range(config.num_layers) for name in contract.present_names(i)]
    cache = {name: np.zeros(row, np.float32) for name in pasts}
    reader = graphs.reader()
    rows, outputs = [], graphs.run(reader, {**features, **_step_inputs(IDS, length), **cache})
    nothing = {contract.IMAGE_FEATURES: features[contract.IMAGE_FEATURES][:, :0]}
    steps = [((ANSWER,), length + 1)]
    if contract.LOGITS in outputs:
        rows.append(outputs[contract.LOGITS][0])
    else:  # a prompt's last token is then read again
        steps.insert(0, (IDS[-1:], length))
    for ids, total in steps:
        cache = {name: outputs[present] for name, present in zip(pasts, presents, strict=True)}
        outputs = graphs.run(contract.DECODER, {**nothing, **_step_inputs(ids, total), **cache})
        rows.append(outputs[contract.LOGITS][0])
    return np.concatenate(rows)


class _Graphs:
    def __init__(self, bundle: Path, variant: str, given: Mapping[str, Array] | None) -> None:
        manifest = Bundle.open(bundle).manifest
        self.given = given or {}
        self.folder = bundle / variant
        self.files = dict(manifest.variants[variant].graphs)
        if given is not None:
            self.files |= manifest.lora_graphs[variant].graphs
        self.bundle = bundle

    def reader(self) -> str:
        return contract.PREFILL if contract.PREFILL in self.files else contract.DECODER

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = open_lora_graph(self.bundle / self.files[graph], self.folder)
        wanted: dict[str, Array] = {}
        for value in session.get_inputs():
            dtype = _DTYPES.get(value.type)
            if contract.LORA in value.name:
                none = np.zeros([n if isinstance(n, int) else 0 for n in value.shape], dtype)
                wanted[value.name] = self.given.get(value.name, none)
            else:
                wanted[value.name] = feeds[value.name].astype(dtype or feeds[value.name].dtype)
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, wanted), strict=True))


def open_lora_graph(graph: Path, folder: Path) -> ort.InferenceSession:
    """A session of a graph whose weights are in another folder."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return ort.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])


def original(base: Path, seen: Array, adapter: Path | None = None) -> Array:
    """The same logits by transformers in float32, with the adapter applied by peft."""
    model = peft.load(base, torch.float32)
    tokens = (model.config.vision_config.image_size // 14) ** 2
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, adapter).eval()
    ids = [IMAGE_ID] * tokens + [*IDS, ANSWER]
    kinds = [0] * (len(ids) - 1) + [1]
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([ids]),
            token_type_ids=torch.tensor([kinds]),
            pixel_values=torch.from_numpy(seen),
            use_cache=False,
        )
    logits: Array = output.logits[0, -2:].numpy()
    return logits


def distance(actual: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())


def _step_inputs(ids: Sequence[int], length: int) -> dict[str, Array]:
    return {
        contract.INPUT_IDS: np.array([ids], np.int64),
        contract.SEQLENS_K: np.array([length - 1], np.int32),
        contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
    }
