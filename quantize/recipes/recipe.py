"""A recipe: which scheme each layer gets, and which transforms come first. It is data, in TOML.

Recipes that are shipped are beside this file; a user's own is given by its path. Knows names and
numbers. Knows no graph.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NoReturn

from paligemma_edge.quantize.rounding.rounding import Grid, Method
from paligemma_edge.runtime.contract import ComputeDtype, WeightDtype
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.schema import MismatchError, parse_value
from paligemma_edge.runtime.suggestion import suggestion

SUFFIX = ".toml"
LOSSLESS_RECIPE = "fp32"  # of a variant with the checkpoint's own weights, computed in float32
_NAME = re.compile(r"(cpu|cuda)-[a-z0-9][a-z0-9_.-]{0,90}")
_SCHEME_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MAX_BYTES = 1 << 15  # tomllib takes a time that grows with the square of a dotted key


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a layer's product is computed.

    Args:
        kind: "blockwise": weights in blocks that share a scale (MatMulNBits), and on a CPU inputs
            of 8 bits. "integer": weights of 8 bits with a scale for each output; CPU only.
            "float": as it is.
        bits: Bits of a weight: 4 or 8 in "blockwise", 8 in "integer".
        block: Inputs that share a scale in "blockwise": 16, 32, 64, 128 or 256; on CUDA 32.
        pad: In "blockwise", fill the last block with zeros where the width is no multiple.
        inputs: Bits of an input in "integer": 8 or 16.
        rounding: "nearest" code, "search" for the best scale, or "gptq"
            (https://arxiv.org/abs/2210.17323), which calibration makes better than "search".

    Example:
        >>> Scheme(kind="blockwise", bits=4, block=32)
    """

    kind: str
    bits: int = 8
    block: int = 0
    pad: bool = False
    inputs: int = 8
    rounding: str = "gptq"

    @property
    def grid(self) -> Grid:
        """The codes and how far a scale reaches."""
        return Grid(4 if self.bits == 4 else 8, self.block or None)

    @property
    def method(self) -> Method:
        """How weights are rounded."""
        return _METHODS[self.rounding]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Layers by a pattern of their names, and their scheme.

    A layer whose output would be off by more than `most_error` takes the first of the `safer`
    schemes with which it is not, or the last.
    """

    match: str
    scheme: str
    safer: tuple[str, ...] = ()
    most_error: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a variant is built by: which transforms, and which scheme each layer gets.

    Args:
        about: A line for people.
        weights: The dtype of most of the weights, as the manifest states it.
        compute: The dtype that the graphs compute in: "float32" on a CPU, a half on CUDA.
        fold: Fold the gains of norms into the weights.
        rotate: Rotate the decoder's residual stream and the values of its heads
            (QuaRot, https://arxiv.org/abs/2404.00456).
        smooth: 0 to 1, how much of the inputs' unevenness moves into the weights
            (SmoothQuant, https://arxiv.org/abs/2211.10438).
        refine: How many of the largest logits are computed again from the embedding table.
        prefill: Read prompts by a graph of its own, whose layers are called prefill.*.
        schemes: By name, for `layers`.
        layers: The last one that matches a layer decides; what none matches stays as it is.
        name: The variant's, such as cpu-mine or cuda-mine; it says where the variant runs.
    """

    about: str
    weights: WeightDtype
    compute: ComputeDtype = "float32"
    fold: bool = True
    rotate: bool = False
    smooth: float = 0.0
    refine: int = 0
    prefill: bool = False
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    layers: tuple[Assignment, ...] = ()
    name: str = ""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its variants run."""
        return "cuda" if self.name.startswith("cuda-") else "cpu"

    def assignment(self, layer: str) -> Assignment | None:
        """What a layer gets; None: it stays as it is."""
        matches = [entry for entry in self.layers if fnmatchcase(layer, entry.match)]
        return matches[-1] if matches else None

    def require_names(self, layers: Mapping[str, int]) -> None:
        """Refuse a pattern that no layer has, and blocks that do not divide a layer's width.

        `layers` are the widths of the inputs by name.
        """
        for entry in self.layers:
            if not any(fnmatchcase(layer, entry.match) for layer in layers):
                _refuse(self.name, f"matches no layer with {entry.match!r}", _some(layers))
        for layer, width in layers.items():
            entry_of = self.assignment(layer)
            for name in () if entry_of is None else (entry_of.scheme, *entry_of.safer):
                _require_division(self, layer, width, name)


def shipped() -> dict[str, str]:
    """The recipes that come with the package: name to what they are for."""
    return {name: load_recipe(name).about for name in _shipped_names()}


def load_recipe(source: str | Path) -> Recipe:
    """Read a shipped recipe by its name, or a user's by its path.

    Args:
        source: A name such as "cpu-int4" (`shipped` lists them), or the path of a TOML file whose
            name is that of the variant, such as cpu-mine.toml.

    Returns:
        The recipe, checked.

    Raises:
        OptionError: There is no such recipe, or the file is not a valid one.

    Example:
        >>> load_recipe("cpu-int4").device
        'cpu'
    """
    name = str(source)
    if name in _shipped_names():
        return _read(name, files(__package__).joinpath(name + SUFFIX).read_bytes())
    path = Path(source)
    if path.suffix != SUFFIX:
        raise OptionError(
            f"there is no recipe {name!r}{suggestion(name, _shipped_names())}; wanted one of "
            f"{', '.join(_shipped_names())}, or the path of a file that ends in {SUFFIX}"
        )
    return _read(path.stem, _contents(path))


def _contents(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES:
            return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot read recipe {path}: {reason}") from None
    raise OptionError(f"recipe {path} is too large or not a file; wanted some lines of TOML")


def _shipped_names() -> list[str]:
    entries = (entry.name for entry in files(__package__).iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in entries if name.endswith(SUFFIX))


def _read(name: str, data: bytes) -> Recipe:
    if not _NAME.fullmatch(name):
        _refuse(name, "has this name", "one such as cpu-mine or cuda-mine, in small letters")
    if name.endswith(f"-{LOSSLESS_RECIPE}"):
        _refuse(name, "has the name of the lossless variant", "another one, such as cpu-mine")
    try:
        table: dict[str, Any] = tomllib.loads(data.decode())
        _refuse_unknown(name, table)
        recipe: Recipe = parse_value(Recipe, {**table, "name": name}, f"recipe {name}")
        _check(recipe)
    except OptionError:
        raise
    except MismatchError as error:
        raise OptionError(str(error)) from None
    except (ValueError, RecursionError) as error:  # those of TOML, of text and of long numbers
        raise OptionError(f"recipe {name} is not valid TOML: {error}") from None
    return recipe


def _refuse_unknown(name: str, table: Mapping[str, Any]) -> None:
    """What is of another type than a table is refused by `parse_value`."""
    _refuse_fields(name, table, [f for f in Recipe.__dataclass_fields__ if f != "name"])
    schemes, layers = table.get("schemes"), table.get("layers")
    for key, scheme in schemes.items() if isinstance(schemes, dict) else ():
        if not _SCHEME_NAME.fullmatch(key):
            _refuse(name, f"has a scheme with the name {key!r}", "letters, digits, - and _")
        _refuse_fields(name, scheme, Scheme.__dataclass_fields__)
    for entry in layers if isinstance(layers, list) else ():
        _refuse_fields(name, entry, Assignment.__dataclass_fields__)


def _refuse_fields(name: str, table: object, known: Iterable[str]) -> None:
    odd = [key for key in table if key not in known] if isinstance(table, dict) else []
    if odd:
        _refuse(name, f"has {', '.join(map(repr, odd))}", f"only {', '.join(known)} there")


def _check(recipe: Recipe) -> None:
    """Refuse what makes no sense, by name."""
    name = recipe.name
    for key, scheme in recipe.schemes.items():
        _check_scheme(recipe, key, scheme)
    for entry in recipe.layers:
        for used in (entry.scheme, *entry.safer):
            if used not in recipe.schemes:
                _refuse(name, f"names the scheme {used!r}", f"one of {', '.join(recipe.schemes)}")
        if not 0 < entry.most_error <= 1:
            _refuse(name, f"has most_error {entry.most_error}", "more than 0, at most 1")
    if not 0 <= recipe.smooth <= 1:
        _refuse(name, f"has smooth {recipe.smooth}", "0 to 1")
    if (recipe.rotate or recipe.smooth) and not recipe.fold:
        _refuse(name, "rotates or smooths without fold", "fold = true")
    if not 0 <= recipe.refine <= 1024:
        _refuse(name, f"has refine {recipe.refine}", "0 to 1024")
    if recipe.device == "cuda":
        _check_cuda(recipe)
    elif recipe.compute != "float32":
        _refuse(name, f"computes in {recipe.compute} on a CPU", "float32: others are slower there")


def _check_cuda(recipe: Recipe) -> None:
    if recipe.compute == "float32":
        _refuse(recipe.name, "computes in float32 on CUDA", "float16 or bfloat16")
    if recipe.prefill:
        _refuse(recipe.name, "has a prefill graph on CUDA", "one graph: its products serve both")


_METHODS: Mapping[str, Method] = {"nearest": "nearest", "search": "search", "gptq": "gptq"}


def _check_scheme(recipe: Recipe, key: str, scheme: Scheme) -> None:
    def refuse(found: str, wanted: str) -> NoReturn:
        _refuse(recipe.name, f"has in scheme {key!r} {found}", wanted)

    if scheme.kind not in ("blockwise", "integer", "float"):
        refuse(f"the kind {scheme.kind!r}", "blockwise, integer or float")
    if scheme.rounding not in _METHODS:
        refuse(f"the rounding {scheme.rounding!r}", f"one of {', '.join(_METHODS)}")
    if scheme.kind == "blockwise":
        if scheme.bits not in (4, 8):
            refuse(f"{scheme.bits} bits", "4 or 8")
        if scheme.block not in (16, 32, 64, 128, 256):
            refuse(f"blocks of {scheme.block}", "16, 32, 64, 128 or 256")
        if recipe.device == "cuda" and (scheme.block != 32 or scheme.pad):
            refuse(f"blocks of {scheme.block}", "32 without padding, which CUDA's kernels read")
    if scheme.kind == "integer":
        if recipe.device == "cuda":
            refuse("integer products", "blockwise ones: CUDA has no kernel for these")
        if scheme.bits != 8 or scheme.block:
            refuse(f"{scheme.bits} bits, blocks of {scheme.block}", "8 bits without blocks")
        if scheme.inputs not in (8, 16):
            refuse(f"inputs of {scheme.inputs} bits", "8 or 16")


def _require_division(recipe: Recipe, layer: str, width: int, scheme_name: str) -> None:
    scheme = recipe.schemes[scheme_name]
    if scheme.kind == "blockwise" and width % scheme.block and not scheme.pad:
        _refuse(
            recipe.name,
            f"cuts {layer}, whose input is {width} wide, into blocks of {scheme.block}",
            "a block that divides it, or pad = true",
        )


def _some(layers: Mapping[str, int]) -> str:
    return f"names such as {', '.join(list(layers)[:3])}"


def _refuse(name: str, found: str, wanted: str) -> NoReturn:
    raise OptionError(f"recipe {name} {found}; wanted {wanted}")
