"""A graph of a bundle as onnx_ir reads it, or one line that says why it cannot be read.

Weights stay in their files. Whoever wrote the bundle chose every text in it.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError


def read_graph(bundle: Bundle, file: str) -> ir.Model:
    """Read a graph whose digest was compared; BundleError where it is not a graph of a bundle."""
    path = bundle.file(file)
    try:
        if not _is_text(onnx.load(path, load_external_data=False)):
            raise _unreadable(bundle, file, "has names that are not UTF-8")
        model = ir.load(path)
    except (DecodeError, ir.serde.SerdeError):
        raise _unreadable(bundle, file, "is not a graph that onnx_ir can read") from None
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            weights = str(PurePosixPath(file).parent / tensor.location)
            if weights not in bundle.manifest.files:
                raise _unreadable(bundle, file, f"names weights in {weights!r}, which is not there")
    return model


def _is_text(message: Message) -> bool:
    """Whether all strings of a message are UTF-8; protobuf gives others as bytes."""
    for field, value in message.ListFields():
        items = value if field.is_repeated else [value]
        if field.type == field.TYPE_STRING and any(isinstance(item, bytes) for item in items):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, items)):
            return False
    return True


def _unreadable(bundle: Bundle, file: str, why: str) -> BundleError:
    return BundleError(f"bundle {bundle.path}: {file} {why}; export the bundle again")
