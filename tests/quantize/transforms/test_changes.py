"""An adapter follows the transforms: what it adds to a weight before them, it adds after them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.quantize.graphs.derived_weights import DerivedMatrix, Float
from paligemma_edge.quantize.graphs.linear import HEAD, Linear
from paligemma_edge.quantize.graphs.prefill import PREFIX
from paligemma_edge.quantize.recipes.recipe import Recipe
from paligemma_edge.quantize.transforms.changes import (
    Branch,
    Change,
    Changes,
    DividedOutputs,
    RotatedInputs,
    RotatedOutputs,
    ScaledInputs,
    changes_of,
    has_shift,
)
from paligemma_edge.quantize.transforms.changes_file import read_changes, write_changes
from paligemma_edge.quantize.transforms.fold import float_of
from paligemma_edge.quantize.transforms.rotation import Rotation
from paligemma_edge.quantize.variant.build import layer_changes
from paligemma_edge.quantize.variant.passes import TransformedGraphs, prepare, transform
from paligemma_edge.runtime.errors import BundleError
from tests.helpers.half_graphs import Array
from tests.helpers.watched import Case, by_name, matrix

RECIPES = {
    "plain": Recipe(about="a test", weights="float16", fold=False, name="cpu-plain"),
    "folded": Recipe(about="a test", weights="int8", name="cpu-folded"),
    "rotated": Recipe(about="a test", weights="int8", rotate=True, name="cpu-rotated"),
    "all": Recipe(
        about="a test", weights="int8", rotate=True, smooth=0.7, prefill=True, name="cpu-all"
    ),
    "smoothed": Recipe(about="a test", weights="int8", smooth=0.5, name="cpu-smoothed"),
}
RANK = 5


def transformed(case: Case, recipe: str, *, calibrated: bool = False) -> TransformedGraphs:
    found = transform(case.graphs(), RECIPES[recipe])
    moments = case.moments(found.graphs) if calibrated else {}
    return prepare(found, RECIPES[recipe], moments)


def branch_for(layer: Linear, seed: int = 0) -> Branch:
    rng = np.random.default_rng(seed)
    a, b = (RANK, layer.in_features), (layer.out_features, RANK)
    return Branch(rng.normal(size=a).astype(np.float32), rng.normal(size=b).astype(np.float32))


def product(branch: Branch) -> Float:
    return branch.b @ branch.a


def close(found: Array, wanted: Array, name: str) -> None:
    atol = 2e-5 * float(np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)


def replayed(weight: Float, changes: Sequence[Change]) -> Float:
    for change in changes:
        weight = change(weight, 0)
    return weight


@pytest.mark.parametrize("calibrated", [False, True], ids=["weights alone", "calibrated"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_changed_branch_is_the_difference_that_it_makes_to_the_changed_weight(
    recipe: str, calibrated: bool, case: Case
) -> None:
    """They do `transform(W + B A) - transform(W)`, replayed on both, and leave nothing else."""
    before = by_name(case.graphs())
    after = by_name(transformed(case, recipe, calibrated=calibrated).graphs)
    for name, layer in before.items():
        if name not in after or name == HEAD:
            continue
        changes, branch = changes_of(after[name].tensor), branch_for(layer)
        weight = matrix(layer)
        np.testing.assert_array_equal(replayed(weight.copy(), changes), matrix(after[name]))
        moved = replayed(weight + product(branch), changes) - matrix(after[name])
        close(moved, product(branch.after(changes)), name)


@pytest.mark.parametrize("recipe", ["folded", "rotated"])
def test_a_model_with_other_weights_is_transformed_to_the_branch(recipe: str, case: Case) -> None:
    """Nothing replayed here: the passes run again, and biases give the shift."""
    plain, other = case.graphs(), case.graphs()
    branches = {}
    for name, layer in by_name(other).items():
        branches[name] = branch_for(layer)
        layer.change(Added(product(branches[name])))
    found, moved = (by_name(transform(g, RECIPES[recipe]).graphs) for g in (plain, other))
    shifted = 0
    for name, layer in found.items():
        if name == HEAD:
            continue
        branch = branches[name].after(changes_of(layer.tensor))
        close(matrix(moved[name]) - matrix(layer), product(branch), name)
        if layer.bias is None or branch.shift is None:
            assert branch.shift is None
            continue
        bias = float_of(moved[name].bias) - float_of(layer.bias)
        close(bias, branch.b @ branch.shift, name)
        shifted += bool(np.abs(bias).max() > 0.01)
    assert shifted == sum(name.endswith((".out_proj", ".fc2")) for name in found)


@dataclasses.dataclass(frozen=True, eq=False)
class Added:
    """What no transform does, and no adapter can follow."""

    whole: ClassVar[bool] = False

    weight: Float

    def __call__(self, rows: Float, start: int) -> Float:
        return rows + self.weight[start : start + len(rows)]


def test_each_change_alone() -> None:
    rng = np.random.default_rng(0)
    six, four = Rotation.of_size(6), Rotation.of_size(4)
    scales, shift, divisors = (rng.uniform(0.5, 2, n).astype(np.float32) for n in (12, 12, 14))
    wide = np.kron(np.eye(2), np.kron(six.left, six.right))
    blocks = np.eye(14)
    blocks[6:, 6:] = np.kron(np.eye(2), np.kron(four.left, four.right))
    matrices: list[tuple[Change, Array, Array]] = [
        (ScaledInputs(scales, shift), np.eye(14), np.diag(scales)),
        (RotatedInputs(six), np.eye(14), wide),
        (DividedOutputs(divisors), np.diag(1 / divisors), np.eye(12)),
        (RotatedOutputs(four, 6), blocks.T, np.eye(12)),
    ]
    branch = Branch(
        rng.normal(size=(3, 12)).astype(np.float32), rng.normal(size=(14, 3)).astype(np.float32)
    )
    a, b = branch.a.copy(), branch.b.copy()
    for change, left, right in matrices:
        after = branch.after([change])
        close(after.a, branch.a @ right, str(change))
        close(after.b, left @ branch.b, str(change))
        assert (after.shift is None) == (not has_shift([change]))
    np.testing.assert_array_equal(branch.a, a)  # left as it was
    np.testing.assert_array_equal(branch.b, b)
    found = branch.after([RotatedInputs(six), ScaledInputs(scales, shift)])
    assert found.shift is not None
    close(found.shift, branch.a @ wide @ shift, "a shift is of the inputs as they were by then")


def test_a_change_that_mixes_rows_asks_for_all_of_them() -> None:
    values = np.arange(48, dtype=np.float32).reshape(8, 6)
    turn = RotatedOutputs(Rotation.of_size(4))
    derived = DerivedMatrix(ir.tensor(values), turn, columns_first=False)
    assert derived.whole
    np.testing.assert_array_equal(derived.rows(5, 7), turn(values.copy(), 0)[5:7])
    with pytest.raises(AssertionError, match="given all of them"):
        turn(values.copy(), 2)


def test_what_no_adapter_can_follow_is_refused_at_once(case: Case) -> None:
    graphs = case.graphs()
    layer = by_name(graphs)["projector"]
    layer.change(Added(np.zeros((layer.out_features, layer.in_features), np.float32)))
    with pytest.raises(AssertionError, match="changed by what an adapter can follow"):
        changes_of(layer.tensor)


# --- the file


def everything(case: Case) -> Changes:
    return layer_changes(transformed(case, "all", calibrated=True))


def test_a_file_gives_back_the_changes(case: Case, tmp_path: Path) -> None:
    changes, layers = everything(case), by_name(case.graphs())
    assert set(changes) <= set(layers) - {HEAD}
    assert not [name for name in changes if name.startswith(PREFIX)]
    write_changes(tmp_path / "changes.npz", changes)
    found = read_changes(tmp_path / "changes.npz")
    assert list(found) == list(changes)
    for name, read in found.items():
        assert [type(change) for change in read] == [type(change) for change in changes[name]]
        ours, theirs = (branch_for(layers[name]).after(c) for c in (read, changes[name]))
        np.testing.assert_array_equal(ours.a, theirs.a)
        np.testing.assert_array_equal(ours.b, theirs.b)
        np.testing.assert_array_equal(ours.shift, theirs.shift)


def test_a_file_holds_each_array_once_and_always_the_same_bytes(case: Case, tmp_path: Path) -> None:
    for name in "ab":
        write_changes(tmp_path / f"{name}.npz", everything(case))
    data = (tmp_path / "a.npz").read_bytes()
    assert data == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as stored:
        contents = [stored[name].tobytes() for name in stored.files]
    assert len(set(contents)) == len(contents)
    arrays = sum(len(vars(change)) for changes in everything(case).values() for change in changes)
    assert len(contents) < 0.8 * arrays


def test_a_file_without_changes(tmp_path: Path) -> None:
    write_changes(tmp_path / "changes.npz", {})
    assert read_changes(tmp_path / "changes.npz") == {}


@given(st.data())
def test_a_damaged_file_is_an_error_and_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    scaled = ScaledInputs(np.ones(3, np.float32), np.ones(3, np.float32))
    write_changes(path, {"a": (scaled, RotatedOutputs(Rotation.of_size(4), 2))})
    whole = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, len(whole)))
    damage = data.draw(st.one_of(st.just(b""), st.binary(max_size=8)))
    path.write_bytes(whole[:start] + damage + whole[stop:])
    try:
        found = read_changes(path)
    except BundleError as error:
        assert "quantize the variant again with --overwrite" in str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(found, dict)


@pytest.mark.parametrize(
    "index", [b"[]", b"3", b'{"a": 3}', b'{"a": [["Spun", {}]]}', b'{"a": [["ScaledInputs", {}]]}']
)
def test_a_file_of_another_structure_is_refused(index: bytes, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", layers=np.frombuffer(index, np.uint8))
    with pytest.raises(BundleError, match="cannot be read as the changes"):
        read_changes(tmp_path / "x.npz")
    (tmp_path / "x.npz").unlink()
    with pytest.raises(BundleError, match="cannot be read as the changes"):
        read_changes(tmp_path / "x.npz")
