"""The LoRA adapters of a bundle: loaded on first use, and kept on the device.

Knows names, dtypes and shapes. Knows nothing of how an adapter was made.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.contract import LORA, ComputeDtype
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.lora import LoraWeights
from paligemma_edge.runtime.errors import BundleError, OptionError

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
_STORED: Mapping[ComputeDtype, str] = {  # NumPy has no bfloat16: its bits are stored as uint16
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "uint16",
}


class LoraAdapters:
    """The adapters of a bundle that one open variant can be switched to."""

    def __init__(self, bundle: Bundle, variant: str, engine: Engine) -> None:
        """`engine` runs the variant; where it has LoRA graphs, those are open."""
        self.bundle, self.variant = bundle, variant
        self.dtype, self.memory, self.inputs = engine.dtype, engine.memory, engine.lora_inputs
        self._loaded: dict[str, LoraWeights] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that this variant can be switched to."""
        adapters = self.bundle.manifest.adapters
        return tuple(name for name, config in adapters.items() if self.variant in config.files)

    def get(self, name: str) -> LoraWeights:
        """An adapter, loaded on first use.

        OptionError where the variant has none of that name, BundleError where it is damaged.
        """
        if not isinstance(name, str) or name not in self.names:
            raise OptionError(self._absent(name))
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _absent(self, name: object) -> str:
        if isinstance(name, str) and name in self.bundle.manifest.adapters:
            return (
                f"adapter {name} was not made for variant {self.variant}; run `paligemma-edge "
                f"adapter {self.bundle.path} ADAPTER_DIR --name {name} --overwrite`"
            )
        has = f"has {', '.join(self.names)}" if self.names else "has none"
        return f"adapter is {name!r}, variant {self.variant} of the bundle {has}"

    def _load(self, name: str) -> LoraWeights:
        file = self.bundle.manifest.adapters[name].files[self.variant]
        self.bundle.verify([file])
        arrays = _read(self.bundle, file)
        self._check(file, arrays)
        values = {key: self.memory.put(array) for key, array in arrays.items()}
        number = 1 + self.names.index(name)
        return LoraWeights(name, number, self.memory, self.dtype, values)

    def _check(self, file: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """BundleError where the arrays of a file are not what the graphs take."""
        for name, array in arrays.items():
            wanted = self.inputs.get(name)
            if wanted is None:
                raise self._refused(file, f"{name}, which no graph takes")
            sizes = tuple(_rank(arrays, name) if size is None else size for size in wanted)
            if array.shape != sizes or array.dtype != _STORED[self.dtype]:
                raise self._refused(
                    file,
                    f"{name} as {array.dtype} {list(array.shape)}, "
                    f"wanted {_STORED[self.dtype]} {list(sizes)}",
                )
        changed = {_layer(name) for name in arrays}
        for name in self.inputs:
            if _layer(name) in changed and name not in arrays:
                raise self._refused(file, f"a part of {_layer(name)} without {name}")

    def _refused(self, file: str, content: str) -> BundleError:
        return BundleError(
            f"bundle {self.bundle.path}: {file} holds {content}; add the adapter again with "
            "`paligemma-edge adapter --overwrite`"
        )


def _layer(name: str) -> str:
    """The layer that an input belongs to."""
    return name.rpartition(LORA)[0]


def _rank(arrays: Mapping[str, NDArray[Any]], name: str) -> int | str:
    """The rank of an input's layer: the columns of its A; without a valid A, no size is right."""
    a = arrays.get(f"{_layer(name)}{LORA}A")
    return int(a.shape[-1]) if a is not None and a.ndim == 2 else "rank"


def _read(bundle: Bundle, file: str) -> dict[str, NDArray[Any]]:
    try:
        # Opened here, since NumPy leaves a file open that it cannot read.
        with bundle.file(file).open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, *_ZIP_ERRORS) as error:
        raise BundleError(
            f"bundle {bundle.path}: {file} cannot be read as adapter weights ({error}); add the "
            "adapter again with `paligemma-edge adapter --overwrite`"
        ) from None
