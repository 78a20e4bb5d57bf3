"""Whether the graphs of a variant are those that the manifest describes.

Compares names, dtypes and fixed sizes of inputs and outputs once, when a variant is opened, so
that a manifest and graphs that do not belong together are one clear error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeAlias

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import LORA, ComputeDtype
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import Manifest, ModelConfig
from paligemma_edge.runtime.printable import short_line

_Tensor: TypeAlias = tuple[str, tuple[int | None, ...]]  # dtype and sizes; None is a free size
_Tensors: TypeAlias = Mapping[str, _Tensor]

_ANY = (None,)  # one axis of any size
_FLOAT, _INT32, _INT64 = "tensor(float)", "tensor(int32)", "tensor(int64)"
_COMPUTED: Mapping[ComputeDtype, str] = {
    "float32": _FLOAT,
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
}
# The logits after a prompt come from the prefill graph or from the decoder alone; and a graph may
# compute the argmax on its device.
_ARGMAX = (contract.NEXT_TOKEN, contract.NEXT_LOG_PROB)
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    contract.PREFILL: (contract.LOGITS, *_ARGMAX),
    contract.DECODER: _ARGMAX,
}


def check_graph(
    name: str, session: ort.InferenceSession, manifest: Manifest, compute: ComputeDtype
) -> None:
    """BundleError where a graph's tensors are not what the contract and the manifest say.

    `compute` is the dtype of hidden states, features, keys and values.
    """
    try:
        _check_tensors(name, session, manifest, compute)
    except UnicodeDecodeError:
        _refuse(f"{name} has inputs, outputs or sizes whose names are not UTF-8")


def _check_tensors(
    name: str, session: ort.InferenceSession, manifest: Manifest, compute: ComputeDtype
) -> None:
    inputs, outputs = _wanted(name, manifest, _COMPUTED[compute])
    present = session.get_inputs()
    lora = {
        arg.name: (_COMPUTED[compute], (None,) * len(arg.shape))
        for arg in present
        if LORA in arg.name
    }
    offered = {output.name for output in session.get_outputs()}
    optional = _OPTIONAL.get(name, ())
    expected = {k: tensor for k, tensor in outputs.items() if k in offered or k not in optional}
    _compare(name, "input", present, {**inputs, **lora})
    _compare(name, "output", session.get_outputs(), expected)


def _wanted(name: str, manifest: Manifest, computed: str) -> tuple[_Tensors, _Tensors]:
    config, side = manifest.model, manifest.image.size
    hidden_state = {contract.LAST_HIDDEN_STATE: (computed, (None, config.image_tokens, None))}
    features = (computed, (None, config.image_tokens, config.hidden_size))
    codes = (_INT64, (None, contract.CODES_PER_MASK))
    answer_tokens = manifest.tokenizer.image_id
    wanted: dict[str, tuple[_Tensors, _Tensors]] = {
        contract.VISION_ENCODER: (
            {contract.PIXEL_VALUES: (_FLOAT, (None, 3, side, side))},
            hidden_state,
        ),
        contract.PROJECTOR: (hidden_state, {contract.IMAGE_FEATURES: features}),
        contract.PREFILL: _decoder(config, computed),
        contract.DECODER: _decoder(config, computed),
        contract.PICK: _pick(config),
        contract.SHORTLIST: _shortlist(config, min(contract.SHORTLISTED, answer_tokens)),
        contract.MASK_DECODER: (
            {contract.SEGMENTATION_CODES: codes},
            {contract.MASK: (_FLOAT, (None, 64, 64))},
        ),
    }
    if name not in wanted:
        _refuse(f"the manifest has a graph {short_line(repr(name))}, wanted {', '.join(wanted)}")
    return wanted[name]


def _decoder(config: ModelConfig, computed: str) -> tuple[_Tensors, _Tensors]:
    row = (computed, (None, config.num_kv_heads, None, config.head_dim))
    layers = range(config.num_layers)
    inputs: dict[str, _Tensor] = {
        contract.INPUT_IDS: (_INT64, (None, None)),
        contract.IMAGE_FEATURES: (computed, (None, None, config.hidden_size)),
        contract.SEQLENS_K: (_INT32, (None,)),
        contract.TOTAL_SEQUENCE_LENGTH: (_INT32, ()),
        **{name: row for layer in layers for name in contract.past_names(layer)},
    }
    outputs: dict[str, _Tensor] = {
        contract.LOGITS: (_FLOAT, (None, 1, config.vocab_size)),
        contract.NEXT_TOKEN: (_INT64, (None, 1)),
        contract.NEXT_LOG_PROB: (_FLOAT, (None, 1)),
        **{name: row for layer in layers for name in contract.present_names(layer)},
    }
    return inputs, outputs


def _pick(config: ModelConfig) -> tuple[_Tensors, _Tensors]:
    inputs = {contract.LOGITS: (_FLOAT, (1, 1, config.vocab_size)), contract.TOKENS: (_INT64, _ANY)}
    return inputs, {contract.PICKED: (_FLOAT, _ANY)}


def _shortlist(config: ModelConfig, count: int) -> tuple[_Tensors, _Tensors]:
    inputs = {contract.LOGITS: (_FLOAT, (1, 1, config.vocab_size))}
    return inputs, {
        contract.TOP_TOKENS: (_INT64, (count,)),
        contract.TOP_LOGITS: (_FLOAT, (count,)),
    }


def _compare(graph: str, kind: str, present: Iterable[ort.NodeArg], wanted: _Tensors) -> None:
    tensors = {arg.name: (arg.type, tuple(arg.shape)) for arg in present}
    for name in sorted(tensors.keys() ^ wanted.keys()):
        _refuse(f"{graph} {'has an' if name in tensors else 'lacks the'} {kind} {name!r}")
    for name, (dtype, sizes) in wanted.items():
        actual_dtype, actual_sizes = tensors[name]
        fits = len(actual_sizes) == len(sizes) and all(
            want is None or size == want for size, want in zip(actual_sizes, sizes, strict=True)
        )
        if actual_dtype != dtype or not fits:
            _refuse(
                f"{graph}'s {kind} {name!r} is {actual_dtype} {list(actual_sizes)}, "
                f"the manifest says {dtype} {list(sizes)}"
            )


def _refuse(mismatch: str) -> NoReturn:
    raise BundleError(
        f"{mismatch}; the manifest and the graphs do not belong together, export the bundle again"
    )
