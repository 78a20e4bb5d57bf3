"""`manifest.json`, the description of a bundle, as frozen dataclasses, checked when it is read.

Knows fields, types and ranges. Knows nothing of files or of a device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Self

from paligemma_edge.runtime.contract import (
    LOC_COUNT,
    SEG_COUNT,
    ComputeDtype,
    WeightDtype,
    itemsize,
)
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.schema import MismatchError, parse_value

SCHEMA_VERSION = "3.0"
PIECE_BYTES = 64 << 20  # a large file has a digest for each piece of this size
LICENSES_FOLDER = "licenses"  # licence and terms, as they lay beside the checkpoint's weights
MAX_NOTE = 500  # characters
MOST_EOS_IDS = 64
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # of a variant or an adapter
_MOST_ORIGINS = 64  # entries of `source`
_MOST_BYTES = 1 << 50
_CHANGED = "the bundle's manifest was changed or written by something else: export it again"
_MAJOR = SCHEMA_VERSION.partition(".")[0]  # another one is refused, a newer minor is read


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the model that the runtime needs."""

    family: Literal["paligemma"]
    image_tokens: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int  # of image, prompt and answer together, in tokens

    def __post_init__(self) -> None:
        for name in ("image_tokens", "hidden_size", "num_layers", "num_kv_heads", "head_dim"):
            _check_range(name, getattr(self, name), 1, 1 << 20)
        _check_range("vocab_size", self.vocab_size, 1, 1 << 24)
        _check_range("max_length", self.max_length, self.image_tokens + 2, 1 << 24)

    def cache_bytes(self, tokens: int, dtype: ComputeDtype = "float32") -> int:
        """Bytes of keys and values that one slot needs for `tokens` tokens."""
        values = 2 * self.num_layers * self.num_kv_heads * self.head_dim * tokens
        return values * itemsize(dtype)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The token ids that the runtime uses itself. `<loc>` and `<seg>` are contiguous ranges."""

    file: str
    pad_id: int
    eos_ids: tuple[int, ...]  # each of them ends an answer; ascending
    bos_id: int
    newline_id: int
    first_loc_id: int
    first_seg_id: int
    image_id: int  # the first id that is never part of an answer

    def __post_init__(self) -> None:
        for name in ("pad_id", "bos_id", "newline_id"):
            _check_range(name, getattr(self, name), 0, self.image_id - 1)
        _check_range("number of eos_ids", len(self.eos_ids), 1, MOST_EOS_IDS)
        for low, token in zip((-1, *self.eos_ids), self.eos_ids, strict=False):
            _check_range("eos_ids", token, low + 1, self.image_id - 1)
        _check_range("first_loc_id", self.first_loc_id, 0, self.first_seg_id - LOC_COUNT)
        _check_range("first_seg_id", self.first_seg_id, LOC_COUNT, self.image_id - SEG_COUNT)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes pixel values: `(x * rescale_factor - mean) / std`, resized."""

    size: int
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        _check_range("size", self.size, 1, 1 << 13)
        _check_range("rescale_factor", self.rescale_factor, 1e-9, 1e9)
        for mean, std in zip(self.mean, self.std, strict=True):
            _check_range("mean", mean, -1e9, 1e9)
            _check_range("std", std, 1e-9, 1e9)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One set of graphs. `graphs` maps a graph's name to its file in the bundle."""

    device: Literal["cpu", "cuda"]
    recipe: str
    graphs: Mapping[str, str]
    weight_dtype: WeightDtype  # of most of the weights
    compute_dtype: ComputeDtype  # of features, keys and values; pixels and logits are float32
    memory_bytes: int  # of the weights in memory while the variant runs
    files: tuple[str, ...]  # every file of the variant, graphs included

    def __post_init__(self) -> None:
        _check_range("memory_bytes", self.memory_bytes, 0, _MOST_BYTES)


def piece_count(size: int) -> int:
    """Number of pieces of a file of `size` bytes."""
    return -(-size // PIECE_BYTES)


@dataclass(frozen=True, kw_only=True)
class Prepacked:
    """Graphs of a variant that ONNX Runtime optimized for one device, for a quicker start there."""

    device: str  # fingerprint of the CPU and of ONNX Runtime; not used elsewhere
    graphs: Mapping[str, str]  # as in Variant
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LoraGraphs:
    """Graphs of a variant that take an adapter's weights as inputs, see `adapter_inputs`.

    They read the weights of the variant's own graphs, which are in another folder: ONNX Runtime
    is given its path. A graph that no adapter changes is not among them.
    """

    graphs: Mapping[str, str]  # as in Variant
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """A LoRA adapter that can be switched to.

    `files` are npz files by variant, since each recipe transforms the weights in its own way. A
    file holds the inputs of the LoRA graphs by name; layers that it lacks stay as they are.
    """

    source: str  # the folder that it came from
    rank: int  # the largest of its layers
    graphs: tuple[str, ...]  # those that it changes: an adapter may leave the vision encoder alone
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_range("rank", self.rank, 0, 1 << 20)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and digest of one file of a bundle.

    `pieces` are the digests of a large file's pieces of PIECE_BYTES, so that several cores can
    compare it at once; a small file has none.
    """

    bytes: int
    sha256: str
    pieces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_range("bytes", self.bytes, 0, _MOST_BYTES)
        _check_range("number of pieces", len(self.pieces), 0, piece_count(self.bytes))
        if self.pieces:
            _check_range("number of pieces", len(self.pieces), piece_count(self.bytes), math.inf)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole description of a bundle."""

    schema_version: str
    created_by: str
    source: Mapping[str, str]
    note: str = ""  # the maker's own version or remark
    model: ModelConfig
    tokenizer: TokenizerConfig
    image: ImageConfig
    variants: Mapping[str, Variant]
    default_variant: str | None = None  # the one that the bundle's maker marked
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    prepacked: Mapping[str, Prepacked] = field(default_factory=dict)  # by variant
    lora_graphs: Mapping[str, LoraGraphs] = field(default_factory=dict)  # by variant
    adapters: Mapping[str, LoraInfo] = field(default_factory=dict)  # by name

    def __post_init__(self) -> None:
        _check_range("image_id", self.tokenizer.image_id, 0, self.model.vocab_size)
        if problem := problem_of_note(self.note):
            raise BundleError(f"the note {problem}; {_CHANGED}")
        _check_range("number of entries of source", len(self.source), 0, _MOST_ORIGINS)
        names = (self.variants, self.prepacked, self.lora_graphs, self.adapters)
        for name in chain(*names):
            if not NAME.fullmatch(name):
                raise BundleError(
                    f"{name[:40]!r} is no name of a variant or an adapter, wanted letters, digits, "
                    f"'-', '_' and '.'; {_CHANGED}"
                )
        if self.default_variant is not None and self.default_variant not in self.variants:
            raise BundleError(
                f"default_variant is {self.default_variant[:40]!r}, which is no variant; {_CHANGED}"
            )

    @property
    def licenses(self) -> tuple[str, ...]:
        """The files with licence and terms of the model, as names in the bundle."""
        return tuple(name for name in self.files if name.startswith(f"{LICENSES_FOLDER}/"))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, in the order of the fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Check every field and its type; unknown fields of a newer minor version are ignored."""
        _check_schema(data)
        try:
            manifest: Self = parse_value(cls, data, "manifest")
        except MismatchError as error:
            raise BundleError(f"{error}; {_CHANGED}") from None
        _check_references(manifest)
        return manifest


def _check_references(manifest: Manifest) -> None:
    """BundleError where what was made from a variant has none, or an adapter has no listed file."""
    adapters = manifest.adapters.items()
    made = {"prepacked": manifest.prepacked, "lora_graphs": manifest.lora_graphs}
    made |= {f"adapter {name}": info.files for name, info in adapters}
    for what, by_variant in made.items():
        for variant in by_variant:
            if variant not in manifest.variants:
                raise BundleError(f"{what} is for {variant[:40]!r}, no variant; {_CHANGED}")
    for name, info in adapters:
        absent = [file for file in info.files.values() if file not in manifest.files]
        if absent or not info.files:
            lacks = repr(absent[0][:80]) if absent else "any file"
            raise BundleError(f"adapter {name} lacks {lacks} in the list of files; {_CHANGED}")


def problem_of_note(note: str) -> str | None:
    """What is wrong with the maker's note, or None."""
    if len(note) > MAX_NOTE:
        return f"has {len(note)} characters, wanted at most {MAX_NOTE}"
    return None if note.isprintable() else "has characters that cannot be printed, or several lines"


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise BundleError(f"{name} is {str(value)[:40]}, wanted {low} to {high}; {_CHANGED}")


def _check_schema(data: object) -> None:
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if not isinstance(version, str) or version.partition(".")[0] != _MAJOR:
        raise BundleError(
            f"manifest has schema version {repr(version)[:40]}, this release reads "
            f"{SCHEMA_VERSION!r}; export the bundle again or install a matching paligemma-edge"
        )
