"""Opens the graphs of a variant, several at a time, each after its digest was compared."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.digests import Digests
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.device.session import Session
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.lora import LoraWeights
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.loading.graph_check import check_graph
from paligemma_edge.runtime.manifest import LoraGraphs, Prepacked, Variant

_REQUIRED = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)
_PICKERS = (contract.PICK, contract.SHORTLIST)


def load_engine(
    variant: Variant,
    device: Device,
    digests: Digests,
    prepacked: Prepacked | None = None,
    lora_graphs: LoraGraphs | None = None,
) -> Engine:
    """Open every graph of a variant on a device, or its prepacked or LoRA graphs instead.

    The largest is opened first. BundleError or DeviceError where one cannot be opened.
    """
    manifest = digests.bundle.manifest
    graphs = (prepacked or variant).graphs

    def session(graph: str) -> Session:
        path, weights = digests.file(graphs[graph]), None
        if lora_graphs is not None and graph in lora_graphs.graphs:
            path, weights = digests.file(lora_graphs.graphs[graph]), path.parent
        cuda_graph = device.cuda_graph and graph == contract.DECODER
        opened = device.open_session(
            path, optimized=prepacked is not None, cuda_graph=cuda_graph, weights=weights
        )
        check_graph(graph, opened, manifest, variant.compute_dtype)
        return Session(opened, device.memory, cuda_graph)

    _require_graphs(digests.bundle, variant, graphs)
    ordered = sorted(graphs, key=lambda graph: -_weight_bytes(digests.bundle, graphs[graph]))
    with ThreadPoolExecutor(2, thread_name_prefix="open") as pool:
        sessions = dict(zip(ordered, pool.map(session, ordered), strict=True))
    return Engine(
        manifest.model,
        manifest.tokenizer.image_id,
        variant.compute_dtype,
        device.memory,
        sessions,
        LoraWeights("", 0, device.memory, variant.compute_dtype),
    )


def _require_graphs(bundle: Bundle, variant: Variant, graphs: Mapping[str, str]) -> None:
    required = _REQUIRED if variant.device == "cpu" else (*_REQUIRED, *_PICKERS)
    for graph in required:
        if graph not in graphs:
            raise BundleError(
                f"bundle {bundle.path} has no {graph} graph; export or quantize it again"
            )


def _weight_bytes(bundle: Bundle, graph: str) -> int:
    files = bundle.manifest.files
    return files[f"{graph}.data"].bytes if f"{graph}.data" in files else 0
