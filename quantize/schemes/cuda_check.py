"""Whether ONNX Runtime's CUDA provider can run a whole graph, and its rounded products quickly.

Knows the kernels that version 1.31.1 registers for the operators that graphs here are made of.
The table was read from that release's own registry. What is not in it would run on the CPU, with
copies before and after. Computes nothing: whether results are right, only a device can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from paligemma_edge.quantize.graphs.linear import initializer
from paligemma_edge.quantize.schemes.half_plan import ALWAYS_FLOAT, layer_names

CONTRIB = "com.microsoft"

_FLOAT, _HALF, _BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_FLOATS = frozenset({_FLOAT, _HALF, _BRAIN})


@dataclass(frozen=True)
class _Kernel:
    """Kernels of one operator: versions of its schema that they serve, and the float dtypes."""

    first: int
    last: int | None = None  # None: that of `first` alone, until a newer one is registered
    dtypes: frozenset[ir.DataType] = _FLOATS

    def serves(self, version: int) -> bool:
        return self.first <= version <= (self.first if self.last is None else self.last)


_EACH = (_Kernel(13, 20), _Kernel(21, 22), _Kernel(23, 23), _Kernel(24, 24), _Kernel(25))
_LATER = (_Kernel(21, 22), _Kernel(23, 24), _Kernel(25))
_NO_BRAIN = frozenset({_FLOAT, _HALF})
_KERNELS: Mapping[str, tuple[_Kernel, ...]] = {
    "Abs": (_Kernel(13),),
    "Add": (_Kernel(13, 13), _Kernel(14)),
    "ArgMax": (_Kernel(13, None, _NO_BRAIN),),
    "Cast": (_Kernel(13, 18), _Kernel(19, 20), *_LATER),
    "Clip": (_Kernel(13, None, _NO_BRAIN),),
    "Concat": (_Kernel(13),),
    "Conv": (_Kernel(11, 21, _NO_BRAIN), _Kernel(22)),
    "ConvTranspose": (_Kernel(11, 21, _NO_BRAIN), _Kernel(22, None, _NO_BRAIN)),
    "Div": (_Kernel(13, 13), _Kernel(14)),
    "Exp": (_Kernel(13),),
    "Gather": (_Kernel(13),),
    "GatherElements": (_Kernel(13),),
    "Gelu": (_Kernel(20),),
    "Gemm": (_Kernel(13),),
    "LayerNormalization": (_Kernel(17),),
    "Log": (_Kernel(13, None, _NO_BRAIN),),
    "MatMul": (_Kernel(13),),
    "Max": (_Kernel(13),),
    "Mul": (_Kernel(13, 13), _Kernel(14)),
    "Neg": (_Kernel(13),),
    "RMSNormalization": (_Kernel(23),),
    "ReduceSum": (_Kernel(13),),
    "Relu": (_Kernel(13, 13), _Kernel(14)),
    "Reshape": (_Kernel(13, 13), _Kernel(14, 18), _Kernel(19, 20), *_LATER),
    "ScatterElements": (_Kernel(13, 15), _Kernel(16, 17), _Kernel(18)),
    "Slice": (_Kernel(13),),
    "Split": (_Kernel(13, 17), _Kernel(18)),
    "Squeeze": _EACH,
    "Sub": (_Kernel(13, 13), _Kernel(14)),
    "Tanh": (_Kernel(13),),
    "TopK": (_Kernel(11, 23, _NO_BRAIN), _Kernel(24)),
    "Transpose": (_Kernel(13, 20), *_LATER),
    "Unsqueeze": _EACH,
    f"{CONTRIB}.FastGelu": (_Kernel(1),),
    f"{CONTRIB}.GatherBlockQuantized": (_Kernel(1),),
    f"{CONTRIB}.GroupQueryAttention": (_Kernel(1, None, frozenset({_HALF, _BRAIN})),),
    f"{CONTRIB}.MatMulNBits": (_Kernel(1),),
    f"{CONTRIB}.MultiHeadAttention": (_Kernel(1),),
}
# Operands that a kernel reads on the host: what the device computes would have to be copied.
_ON_HOST: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    f"{CONTRIB}.GroupQueryAttention": (6,),
}
# Of MatMulNBits' quick kernels: outputs come in groups of so many, by the bits of a weight.
_GROUPS: Mapping[int, int] = {4: 64, 8: 32}
_BLOCK = 32


def check_cuda_graph(name: str, model: ir.Model, dtype: ir.DataType) -> list[str]:
    """What keeps a graph in `dtype` from running on CUDA alone and quickly, a line each."""
    return missing_kernels(name, model, dtype) + slow_products(name, model)


def missing_kernels(name: str, model: ir.Model, dtype: ir.DataType) -> list[str]:
    """Nodes that the CPU would have to run, copies, and inputs and outputs of another dtype."""
    problems = [f"{name}: {problem}" for problem in _border(model, dtype)]
    for node in model.graph:
        problems += [f"{name}: {_label(node)} {problem}" for problem in _missing(model, node)]
    return problems


def slow_products(name: str, model: ir.Model) -> list[str]:
    """Products of rounded weights for which CUDA unpacks the whole weight each time."""
    names = layer_names(model)
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    return [
        f"{name}: MatMulNBits {names.get(node, '')} {problem}, so that CUDA unpacks the weight "
        "before each product; keep this layer in half precision or round it otherwise"
        for node in nodes
        if (problem := _slow(node)) is not None
    ]


def _border(model: ir.Model, dtype: ir.DataType) -> Iterator[str]:
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            wanted = _FLOAT if value.name in ALWAYS_FLOAT else dtype
            if value.dtype in _FLOATS and value.dtype != wanted:
                yield f"{kind} {value.name} is {_word(value.dtype)}, wanted {_word(wanted)}"


def _missing(model: ir.Model, node: ir.Node) -> Iterator[str]:
    kernels = [k for k in _KERNELS.get(_key(node), ()) if k.serves(_version(model, node))]
    if not kernels:
        yield "has no CUDA kernel in this opset"
        return
    values = [*node.inputs, *node.outputs]
    dtypes = {value.dtype for value in values if value is not None}
    if None in dtypes:
        yield "reads or makes a value of unknown dtype"
    floats = {dtype for dtype in dtypes if dtype in _FLOATS}
    if len(floats) > 1 and node.op_type != "Cast":
        yield f"mixes {' and '.join(sorted(map(_word, floats)))}"
    for dtype in floats - kernels[0].dtypes:
        yield f"has no CUDA kernel for {_word(dtype)}"
    for place in _ON_HOST.get(_key(node), ()):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and not (value.is_initializer() or value.is_graph_input()):
            yield f"reads {value.name} on the host, which the device computes"


def _slow(node: ir.Node) -> str | None:
    bits, block, width, count = (
        node.attributes[name].as_int() for name in ("bits", "block_size", "K", "N")
    )
    if any(value is not None for value in node.inputs[3:]):
        return "has zero points or a bias"
    if bits not in _GROUPS or block != _BLOCK:
        return f"has {bits} bits in blocks of {block}, wanted 4 or 8 bits in blocks of {_BLOCK}"
    if width % block:
        return f"has {width} inputs, wanted a multiple of {block}"
    if count % _GROUPS[bits]:
        return f"has {count} outputs, wanted a multiple of {_GROUPS[bits]} for {bits} bits"
    return None


def _version(model: ir.Model, node: ir.Node) -> int:
    """The version of the operator's schema that a node means; 0: there is none."""
    if node.domain == CONTRIB:
        return 1
    opset = model.graph.opset_imports.get(node.domain, 0)
    if not onnx.defs.has(node.op_type, node.domain):
        return 0
    return onnx.defs.get_schema(node.op_type, opset, node.domain).since_version


def _key(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _label(node: ir.Node) -> str:
    weights = [value for value in map(initializer, node.inputs) if value is not None]
    return f"{node.op_type} {(weights[0] if weights else node.outputs[0]).name}"


def _word(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()
