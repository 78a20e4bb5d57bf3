"""Bundles from adapters and from npz archives, compared with their originals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge.export.exporter import export
from paligemma_edge.export.verify.parity import ParityReport
from paligemma_edge.export.verify.samples import default_samples
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.errors import CheckpointError, MissingExtraError, OptionError
from tests.helpers import adapters as peft
from tests.helpers.big_vision_file import as_big_vision, save

MakeCheckpoint = Callable[..., Path]
SAMPLES = default_samples()[:1]


def compare(bundle: Path, checkpoint: Path, *adapters: Path) -> ParityReport:
    return verify(bundle, checkpoint, samples=SAMPLES, max_new_tokens=4, adapters=adapters)


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(dtype="bfloat16")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lora")
    plain = peft.train(base, folder / "plain", target_modules="all-linear")
    names = ["q_proj", "v_proj"]
    dora = peft.train(base, folder / "dora", target_modules=names, use_dora=True, seed=1)
    return [plain, dora]


def test_a_bundle_with_merged_adapters_equals_the_original_with_them(
    base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "x.bundle"
    export(base, bundle, adapters=adapters)
    assert compare(bundle, base, *adapters).passed
    with pytest.raises(
        OptionError, match=r"was exported with adapters: plain .*, dora .*give them"
    ):
        compare(bundle, base)
    for others in (adapters[:1], adapters[::-1]):
        report = compare(bundle, base, *others)
        assert not report.passed
        assert next(stage for stage in report.stages if not stage.passed).stage == "vision"


def test_adapters_that_were_not_merged_are_not_compared(
    base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    export(base, tmp_path / "x.bundle")
    with pytest.raises(OptionError, match="exported without adapters; leave --adapter out"):
        compare(tmp_path / "x.bundle", base, *adapters)


def test_an_adapter_of_another_base(
    base: Path, adapters: list[Path], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    export(base, tmp_path / "x.bundle", adapters=adapters)
    other = make_checkpoint(text={"hidden_size": 32})
    with pytest.raises(CheckpointError, match="give an adapter and the base that it was trained"):
        compare(tmp_path / "x.bundle", other, *adapters)
    with pytest.raises(CheckpointError, match="give an adapter and the base that it was trained"):
        export(other, tmp_path / "y.bundle", adapters=adapters)
    assert not (tmp_path / "y.bundle").exists()


def test_without_peft_the_pip_command_is_named(
    base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export(base, tmp_path / "x.bundle", adapters=adapters)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="run: pip install peft"):
        compare(tmp_path / "x.bundle", base, *adapters)


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_a_bundle_of_an_npz_equals_the_original_of_hugging_face(
    kind: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    text = {"model_type": kind, **({"query_pre_attn_scalar": 24} if kind == "gemma2" else {})}
    folder = make_checkpoint(dtype="bfloat16", text=text)
    path = save(tmp_path / "x.npz", as_big_vision(folder))
    export(path, tmp_path / "x.bundle", tokenizer=folder)
    assert compare(tmp_path / "x.bundle", folder).passed
    with pytest.raises(CheckpointError, match="is an npz, which transformers cannot read"):
        compare(tmp_path / "x.bundle", path)
