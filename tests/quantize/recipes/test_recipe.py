"""Recipes: those that are shipped fit, and whatever else comes is a recipe or one line."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.quantize.recipes import recipe as recipe_module
from paligemma_edge.quantize.recipes.recipe import Recipe, load_recipe, shipped
from paligemma_edge.quantize.variant.prepare import require_layers
from paligemma_edge.runtime.errors import OptionError
from tests.conftest import ROOT
from tests.helpers.half_graphs import load

SCHEMES = """
[schemes]
int4 = { kind = "blockwise", bits = 4, block = 32 }
int8 = { kind = "integer" }
"""
LAYERS = '[[layers]]\nmatch = "decoder.*"\nscheme = "int4"\n'
HEAD = 'about = "a test"\nweights = "int4"\n'
GOOD = HEAD + SCHEMES + LAYERS
CUDA = HEAD + 'compute = "float16"\n' + SCHEMES.replace('int8 = { kind = "integer" }', "") + LAYERS


def written(folder: Path, text: str | bytes, name: str = "cpu-test") -> Path:
    path = folder / f"{name}.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(source: str | Path) -> str:
    """The one line that says what is wrong with a recipe."""
    with pytest.raises(OptionError) as caught:
        load_recipe(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


# --- those that are shipped


def test_every_recipe_beside_the_code_is_shipped() -> None:
    """From the wheel as well, where the tests run against one."""
    names = {path.stem for path in (ROOT / "quantize" / "recipes").glob("*.toml")}
    assert len(names) >= 7
    assert set(shipped()) == names


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_says_what_it_is_for(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.device == name.partition("-")[0]
    assert shipped()[name] == recipe.about
    assert 20 < len(recipe.about) < 110
    assert recipe.about.isprintable()


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_fits_the_sample_model(name: str, shapes_bundle: Path) -> None:
    require_layers(load(shapes_bundle), load_recipe(name))


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("cpu-")])
def test_a_shipped_cpu_recipe_fits_widths_that_no_block_divides(
    name: str, odd_bundle: Path
) -> None:
    require_layers(load(odd_bundle), load_recipe(name))


def test_a_cuda_recipe_refuses_them_by_name(odd_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"cuda-int4 cuts decoder.*blocks of 32; wanted"):
        require_layers(load(odd_bundle), load_recipe("cuda-int4"))


# --- a recipe of the user's own


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert (recipe.name, recipe.device, recipe.weights) == ("cpu-test", "cpu", "int4")
    assert recipe.schemes["int4"].bits == 4
    assert recipe.schemes["int4"].grid.block == 32
    assert recipe.schemes["int8"].grid.block is None
    assert recipe.schemes["int8"].method == "gptq"
    assert load_recipe(str(tmp_path / "cpu-test.toml")) == recipe
    assert load_recipe(written(tmp_path, CUDA, "cuda-test")).device == "cuda"


def test_the_last_pattern_that_matches_decides(tmp_path: Path) -> None:
    more = '[[layers]]\nmatch = "decoder.layers.3.*"\nscheme = "int8"\nsafer = ["int4"]\n'
    recipe = load_recipe(written(tmp_path, GOOD + more))
    first, last = (recipe.assignment(f"decoder.layers.{n}.up_proj") for n in (1, 3))
    assert first is not None
    assert last is not None
    assert (first.scheme, first.safer) == ("int4", ())
    assert (last.scheme, last.safer) == ("int8", ("int4",))
    assert recipe.assignment("vision.layers.0.fc1") is None


def test_a_recipe_is_read_from_where_the_command_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cpu-test.toml").name == "cpu-test"


BLOCKWISE = 'kind = "blockwise", bits = 4, block = 32'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("bits = 4", "bits = 3", "in scheme 'int4' 3 bits; wanted 4 or 8"),
        ("block = 32", "block = 48", "blocks of 48; wanted 16, 32, 64, 128 or 256"),
        ("block = 32", "block = -32", "blocks of -32"),
        (BLOCKWISE, 'kind = "blockwise"', "blocks of 0; wanted 16"),
        (BLOCKWISE, 'kind = "sparse"', "the kind 'sparse'; wanted blockwise, integer or float"),
        ("bits = 4", 'bits = "4"', "schemes.int4.bits holds '4', wanted a int"),
        ("bits = 4", "bits = 4.0", "schemes.int4.bits holds 4.0, wanted a int"),
        ("bits = 4", "bits = true", "schemes.int4.bits holds True, wanted a int"),
        ("bits = 4", "bit = 4", "has 'bit'; wanted only kind, bits"),
        ("bits = 4", 'bits = 4, rounding = "down"', "the rounding 'down'; wanted one of nearest"),
        ("bits = 4, block = 32", "pad = 1", "schemes.int4.pad holds 1, wanted a bool"),
        ('kind = "integer"', 'kind = "integer", inputs = 12', "inputs of 12 bits; wanted 8 or 16"),
        ('kind = "integer"', 'kind = "integer", bits = 4', "4 bits, blocks of 0; wanted 8 bits"),
        ('kind = "integer"', 'kind = "integer", block = 32', "wanted 8 bits without blocks"),
        ('{ kind = "integer" }', "{}", "schemes.int8 has no kind"),
        ('{ kind = "integer" }', "8", "schemes.int8 holds 8, wanted an object"),
        ("int8 =", '"a\\nb" =', "has a scheme with the name 'a\\nb'; wanted letters"),
        ('scheme = "int4"', 'scheme = "int5"', "names the scheme 'int5'; wanted one of int4, int8"),
        ('scheme = "int4"', 'scheme = "int4"\nsafer = ["x"]', "names the scheme 'x'"),
        ('scheme = "int4"', 'scheme = "int4"\nsafer = "int8"', "safer holds 'int8', wanted a list"),
        (
            'scheme = "int4"',
            'scheme = "int4"\nmost_error = 0',
            "most_error 0.0; wanted more than 0",
        ),
        ('scheme = "int4"', 'scheme = "int4"\nmost_error = 1.5', "most_error 1.5"),
        ('scheme = "int4"', 'scheme = "int4"\nmost_error = nan', "wanted a finite number"),
        ('scheme = "int4"', "", "layers[0] has no scheme"),
        (LAYERS, "layers = [1]", "schemes.layers holds [1], wanted an object"),
        (HEAD, HEAD + "layers = [1]\n", "is not valid TOML"),
        (GOOD, HEAD + "layers = [1]\n", "layers[0] holds 1, wanted an object"),
        (GOOD, HEAD + "schemes = 1\n", "schemes holds 1, wanted an object"),
        ("[[layers]]", "[layers]", "layers holds {"),
        (HEAD, HEAD.splitlines()[0], "has no weights"),
        (HEAD, 'weights = "int4"', "has no about"),
        ('weights = "int4"', 'weights = "int5"', "weights holds 'int5', wanted one of"),
        (HEAD, HEAD + 'colour = "red"\n', "has 'colour'; wanted only about, weights"),
        (HEAD, HEAD + 'name = "cpu-int4"\n', "has 'name'"),
        (HEAD, HEAD + "smooth = 2\n", "has smooth 2.0; wanted 0 to 1"),
        (HEAD, HEAD + "smooth = -0.5\n", "has smooth -0.5"),
        (HEAD, HEAD + 'smooth = "much"\n', "smooth holds 'much', wanted a number"),
        (HEAD, HEAD + "refine = -1\n", "has refine -1; wanted 0 to 1024"),
        (HEAD, HEAD + "refine = 5000\n", "has refine 5000"),
        (HEAD, HEAD + f"refine = 0x{'f' * 5000}\n", "recipe cpu-test"),
        (HEAD, HEAD + "refine = 1979-05-27\n", "wanted a int"),
        (HEAD, HEAD + "rotate = true\nfold = false\n", "rotates or smooths without fold; wanted"),
        (HEAD, HEAD + "smooth = 0.5\nfold = false\n", "rotates or smooths without fold"),
        (HEAD, HEAD + 'compute = "float16"\n', "computes in float16 on a CPU; wanted float32"),
        (HEAD, HEAD + 'compute = "int8"\n', "compute holds 'int8', wanted one of"),
        ("[schemes]", "[schemes", "is not valid TOML"),
        (GOOD, "", "has no about, weights"),
        (GOOD, "[" * 20_000, "is not valid TOML"),
        (GOOD, "a = " + "[" * 20_000, "is not valid TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    line = refused(written(tmp_path, GOOD.replace(old, new, 1)))
    assert words in line
    assert line.startswith("recipe cpu-test")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'compute = "float16"',
            'compute = "float32"',
            "computes in float32 on CUDA; wanted float16",
        ),
        ('compute = "float16"\n', "", "computes in float32 on CUDA"),
        (HEAD, HEAD + "prefill = true\n", "has a prefill graph on CUDA; wanted one graph"),
        (
            BLOCKWISE,
            'kind = "integer"',
            "integer products; wanted blockwise ones: CUDA has no kernel",
        ),
        ("block = 32", "block = 128", "blocks of 128; wanted 32 without padding"),
        ("block = 32", "block = 32, pad = true", "blocks of 32; wanted 32 without padding"),
    ],
)
def test_a_recipe_that_cuda_has_no_kernels_for(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in CUDA
    assert words in refused(written(tmp_path, CUDA.replace(old, new, 1), "cuda-test"))


def test_layers_that_the_model_lacks_are_refused(shapes_bundle: Path, tmp_path: Path) -> None:
    graphs = load(shapes_bundle)

    def misfit(text: str) -> str:
        with pytest.raises(OptionError) as caught:
            require_layers(graphs, load_recipe(written(tmp_path, text)))
        return str(caught.value)

    line = misfit(GOOD.replace("decoder.*", "decoders.*"))
    assert "matches no layer with 'decoders.*'; wanted names such as vision" in line
    assert "prefill.*" in misfit(GOOD.replace("decoder.*", "prefill.*"))
    wide = GOOD.replace("block = 32", "block = 128")
    line = misfit(wide)
    assert "cuts decoder.layers.0.qkv_proj, whose input is 192 wide, into blocks of 128" in line
    assert "pad = true" in line
    safer = GOOD.replace('scheme = "int4"', 'scheme = "int8"\nsafer = ["int4"]')
    assert "blocks of 128" in misfit(safer.replace("block = 32", "block = 128"))
    fitting = (wide.replace("128", "128, pad = true"), "prefill = true\n" + GOOD)
    for text in (*fitting, fitting[1].replace("decoder.*", "prefill.*")):
        require_layers(graphs, load_recipe(written(tmp_path, text)))


# --- files


def test_a_name_that_is_no_recipe() -> None:
    line = refused("cpu-int3")
    assert "there is no recipe 'cpu-int3'" in line
    assert "cpu-int4, cpu-int8" in line
    assert "ends in .toml" in line
    assert "there is no recipe" in refused("")
    assert "there is no recipe" in refused("cpu-int4\n")


@pytest.mark.parametrize("name", ["mine", "gpu-mine", "cpu-", "cpu-Mine", "CPU-mine", "cpu-a b"])
def test_a_file_name_that_makes_no_variant(tmp_path: Path, name: str) -> None:
    assert "has this name; wanted one such as cpu-mine" in refused(written(tmp_path, GOOD, name))


def test_the_name_of_the_lossless_variant_is_taken(tmp_path: Path) -> None:
    assert "lossless" in refused(written(tmp_path, GOOD, "cpu-fp32"))
    assert "lossless" in refused(written(tmp_path, CUDA, "cuda-fp32"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cpu-no.toml: No such file" in refused(tmp_path / "cpu-no.toml")
    (tmp_path / "cpu-folder.toml").mkdir()
    assert "cpu-folder.toml" in refused(tmp_path / "cpu-folder.toml")
    assert "File name too long" in refused(tmp_path / f"cpu-{'x' * 300}.toml")
    assert "cannot read recipe" in refused(tmp_path / "cpu-\0.toml")
    os.mkfifo(tmp_path / "cpu-pipe.toml")  # which would be waited for
    assert "cpu-pipe.toml" in refused(tmp_path / "cpu-pipe.toml")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with path.open("r+b") as file:
        file.truncate(1 << 34)
    assert "is too large" in refused(path)


# --- anything at all

KEYS = (
    *(name for name in Recipe.__dataclass_fields__),
    *("schemes.a", "schemes.a.kind", "schemes.a.bits", "schemes.a.block", "schemes.a.inputs"),
    *("layers.x", "odd", '"a\\nb"', 'schemes."\\n"', "schemes.a.b.c"),
)
VALUES = (
    *("1", "-1", "0.5", "nan", "inf", "true", '""', '"int4"', '"float16"', '"blockwise"', '"a"'),
    *("[]", "{}", "[1]", "[[1]]", '["a"]', "{ a = 1 }", "[{ match = 1 }]", "1979-05-27"),
    *('{ a = { kind = "float" } }', '[{ match = "*", scheme = "a" }]', "0xffffffffffffffffffff"),
)
_lines = st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))
_texts = st.lists(_lines, max_size=8).map(lambda lines: "\n".join(lines).encode())
_heads = st.sampled_from([b"", HEAD.encode(), b'about = "x"\nweights = "int4"\nfold = true\n'])


@given(st.binary(max_size=300) | st.builds(bytes.__add__, _heads, _texts))
def test_any_bytes_are_a_recipe_or_one_line(data: bytes) -> None:
    for name in ("cpu-any", "cuda-any"):
        try:
            assert recipe_module._read(name, data).name == name
        except OptionError as error:
            assert len(str(error).splitlines()) == 1


@given(st.text(max_size=40))
def test_any_name_is_a_recipe_or_one_line(name: str) -> None:
    if name not in shipped():
        refused(name)


def test_graphs_are_left_as_they_are(shapes_bundle: Path) -> None:
    graphs = load(shapes_bundle)
    before = {name: ir.to_proto(model).SerializeToString() for name, model in graphs.items()}
    require_layers(graphs, load_recipe("cpu-fast"))
    assert before == {n: ir.to_proto(model).SerializeToString() for n, model in graphs.items()}
