"""Whether the graphs of a variant are those that the manifest speaks of.

Compares names, dtypes and fixed sizes of inputs and outputs once, when a variant is opened, so
that a manifest and graphs that do not belong together are one clear error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ComputeDtype, Manifest, ModelFacts
from paligemma_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime as ort

_Tensor: TypeAlias = tuple[str, tuple[int | None, ...]]  # dtype and sizes; None is a free size
_Tensors: TypeAlias = Mapping[str, _Tensor]

_FLOAT, _INT32, _INT64 = "tensor(float)", "tensor(int32)", "tensor(int64)"
_COMPUTED: Mapping[ComputeDtype, str] = {
    "float32": _FLOAT,
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
}


def check_graph(
    name: str, session: ort.InferenceSession, manifest: Manifest, compute: ComputeDtype
) -> None:
    """BundleError where a graph's tensors are not what the contract and the manifest say.

    `compute` is the dtype of hidden states, features, keys and values.
    """
    inputs, outputs = _wanted(name, manifest, _COMPUTED[compute])
    _compare(name, "input", session.get_inputs(), inputs)
    _compare(name, "output", session.get_outputs(), outputs)


def _wanted(name: str, manifest: Manifest, computed: str) -> tuple[_Tensors, _Tensors]:
    facts, side = manifest.model, manifest.image.size
    hidden_state = {contract.LAST_HIDDEN_STATE: (computed, (None, facts.image_tokens, None))}
    features = (computed, (None, facts.image_tokens, facts.hidden_size))
    codes = (_INT64, (None, contract.CODES_PER_MASK))
    wanted: dict[str, tuple[_Tensors, _Tensors]] = {
        contract.VISION_ENCODER: (
            {contract.PIXEL_VALUES: (_FLOAT, (None, 3, side, side))},
            hidden_state,
        ),
        contract.PROJECTOR: (hidden_state, {contract.IMAGE_FEATURES: features}),
        contract.PREFILL: _prefill(facts, computed),
        contract.DECODER: _decoder(facts, computed),
        contract.MASK_DECODER: (
            {contract.SEGMENTATION_CODES: codes},
            {contract.MASK: (_FLOAT, (None, 64, 64))},
        ),
    }
    return wanted[name]


def _prefill(facts: ModelFacts, computed: str) -> tuple[_Tensors, _Tensors]:
    row = (computed, (None, facts.num_kv_heads, None, facts.head_dim))
    layers = range(facts.num_layers)
    inputs: dict[str, _Tensor] = {
        contract.INPUT_IDS: (_INT64, (None, None)),
        contract.IMAGE_FEATURES: (computed, (None, None, facts.hidden_size)),
        contract.SEQLENS_K: (_INT32, (None,)),
        contract.TOTAL_SEQUENCE_LENGTH: (_INT32, ()),
        **{name: row for layer in layers for name in contract.past_names(layer)},
    }
    return inputs, {name: row for layer in layers for name in contract.present_names(layer)}


def _decoder(facts: ModelFacts, computed: str) -> tuple[_Tensors, _Tensors]:
    inputs, outputs = _prefill(facts, computed)
    return inputs, {contract.LOGITS: (_FLOAT, (None, 1, facts.vocab_size)), **outputs}


def _compare(graph: str, kind: str, found: Iterable[ort.NodeArg], wanted: _Tensors) -> None:
    tensors = {arg.name: (arg.type, tuple(arg.shape)) for arg in found}
    for name in sorted(tensors.keys() ^ wanted.keys()):
        _refuse(f"{graph} {'has an' if name in tensors else 'lacks the'} {kind} {name!r}")
    for name, (dtype, sizes) in wanted.items():
        found_dtype, found_sizes = tensors[name]
        fits = len(found_sizes) == len(sizes) and all(
            want is None or size == want for size, want in zip(found_sizes, sizes, strict=True)
        )
        if found_dtype != dtype or not fits:
            _refuse(
                f"{graph}'s {kind} {name!r} is {found_dtype} {list(found_sizes)}, "
                f"the manifest says {dtype} {list(sizes)}"
            )


def _refuse(found: str) -> None:
    raise BundleError(
        f"{found}; the manifest and the graphs do not belong together, export the bundle again"
    )
