"""The variant that is used where none is named: marked by the maker, kept, and said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli import main as cli

QUICK = ("--no-calibration", "--no-report")


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("marked") / "copy.bundle"))


def test_quantize_marks_a_variant_and_keeps_the_mark(bundle: Path) -> None:
    marked: Callable[[], str | None] = lambda: Bundle.open(bundle).manifest.default_variant  # noqa: E731
    assert marked() is None
    assert cli.main(["quantize", str(bundle), "cpu-int4", "--default", *QUICK]) == 0
    assert marked() == "cpu-int4"
    assert cli.main(["quantize", str(bundle), "cpu-int8", *QUICK]) == 0
    assert marked() == "cpu-int4"
    assert cli.main(["quantize", str(bundle), "cpu-int4", "--overwrite", *QUICK]) == 0
    assert marked() == "cpu-int4"
    with PaliGemma(bundle, "cpu") as model:
        assert model.variant == "cpu-int4"
        assert "marked" in model.variant_reason
    assert cli.main(["quantize", str(bundle), "cpu-int8", "--overwrite", "--default", *QUICK]) == 0
    assert marked() == "cpu-int8"


def test_one_variant_alone_is_the_default(
    shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = ("cpu-int4", "cpu-int8")
    assert cli.main(["quantize", str(shapes_bundle), *recipes, "--default", *QUICK]) == 2
    assert "2 recipes are given and one variant alone can be the default" in capsys.readouterr().err
    command = ["export", str(shapes_checkpoint), str(tmp_path / "a.bundle"), "--default"]
    variants = [part for name in recipes for part in ("--variant", name)]
    assert cli.main([*command, *variants]) == 2
    assert "one alone can be the default" in capsys.readouterr().err
    assert not (tmp_path / "a.bundle").exists()
    assert cli.main([*command, "--mask-decoder", str(shapes_checkpoint / "vae-oid.npz")]) == 0
    assert Bundle.open(tmp_path / "a.bundle").manifest.default_variant == "cpu-fp32"
