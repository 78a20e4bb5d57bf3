"""The projector as a graph: one linear layer from the encoder's width to the decoder's."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.graphs.builder import FLOAT, Graph
from paligemma_edge.runtime import contract


def build_projector(config: PaliGemmaConfig, tensors: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """`last_hidden_state` [batch, N, vision hidden] → `image_features` [batch, N, hidden].

    The features are not scaled: the decoder scales text embeddings only.
    """
    graph = Graph.create(contract.PROJECTOR, tensors)
    tokens = config.vision.image_tokens
    x = graph.input(contract.LAST_HIDDEN_STATE, FLOAT, ["batch", tokens, config.vision.hidden_size])
    features = graph.linear(x, "projector", bias=True)
    graph.output(
        features, contract.IMAGE_FEATURES, FLOAT, ["batch", tokens, config.text.hidden_size]
    )
    return graph.model()
