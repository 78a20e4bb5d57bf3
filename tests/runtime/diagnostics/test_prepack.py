"""A variant prepacked for this device answers as before, and elsewhere it is as if it were not."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import MANIFEST, Bundle
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.diagnostics.prepack import prepack, remove_prepacked
from paligemma_edge.runtime.errors import (
    BundleError,
    DeviceError,
    MissingExtraError,
    OptionError,
    OutputError,
)
from paligemma_edge.runtime.loading import prepacked
from paligemma_edge.runtime.results.generation import Generation
from tests.helpers.journey import call, refused, stages_of
from tests.helpers.killed import at_each_step

VARIANT = "cpu-fp32"
DATA = f"prepacked/{VARIANT}/decoder.onnx.data"
IMAGE = np.random.default_rng(5).integers(0, 256, (80, 100, 3), np.uint8)


@pytest.fixture(scope="module")
def prepacked_bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed; `prepacked_copy` is."""
    path = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("prepacked") / "a.bundle"))
    assert prepack(path) == VARIANT
    return path


@pytest.fixture
def prepacked_copy(prepacked_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepacked_bundle, tmp_path / "copy.bundle"))


def answers(model: PaliGemma) -> list[Generation]:
    asked = [(IMAGE, prompt) for prompt in ("caption en", "segment red square", "detect circle")]
    return model.generate_batch(asked, max_new_tokens=24)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_answers_are_the_same(shapes_model: PaliGemma, prepacked_bundle: Path) -> None:
    model = PaliGemma(prepacked_bundle)
    assert model._loaded.prepacked is not None
    assert set(model._loaded.prepacked.graphs) == set(
        model.bundle.manifest.variants[VARIANT].graphs
    )
    assert answers(model) == answers(shapes_model)
    codes = np.arange(32).reshape(2, 16)
    here, before = (m._loaded.engine.decode_masks(codes) for m in (model, shapes_model))
    np.testing.assert_array_equal(here, before)


def test_the_prepacked_files_are_read_in_place_of_the_originals(
    prepacked_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_session = Device.open_session

    def watched(self: Device, path: Path, **options: Any) -> ort.InferenceSession:  # noqa: ANN401
        opened.append(path.relative_to(prepacked_copy).parent.as_posix())
        return open_session(self, path, **options)

    monkeypatch.setattr(Device, "open_session", watched)
    damage(prepacked_copy / f"{VARIANT}/decoder.onnx.data")
    model = PaliGemma(prepacked_copy)
    assert opened == [f"prepacked/{VARIANT}"] * len(opened) != []
    assert not any(name.startswith(f"{VARIANT}/") for name in model._loaded.verified_files)
    assert model.generate(IMAGE, "caption en", max_new_tokens=4).token_ids


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage, "decoder.onnx.data differs from its sha256"),
        (lambda path: path.write_bytes(b"short"), "decoder.onnx.data has 5 bytes"),
        (Path.unlink, "decoder.onnx.data is missing"),
        (lambda path: shutil.rmtree(path.parent), "decoder.onnx is missing"),
    ],
)
def test_damage_is_reported_with_its_remedy_which_helps(
    prepacked_copy: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(prepacked_copy / DATA)
    Bundle.open(prepacked_copy)
    with pytest.raises(BundleError, match=message) as error:
        PaliGemma(prepacked_copy)
    assert f"run `paligemma-edge prepack {prepacked_copy} --variant {VARIANT}`" in str(error.value)
    prepack(prepacked_copy, VARIANT)
    assert PaliGemma(prepacked_copy)._loaded.prepacked is not None


def test_a_file_that_no_manifest_lists_is_refused(prepacked_copy: Path) -> None:
    (prepacked_copy / f"prepacked/{VARIANT}/more.data").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"more.data' is not in manifest.json"):
        PaliGemma(prepacked_copy)


def test_packed_weights_of_another_model_are_not_used(prepacked_copy: Path) -> None:
    """ONNX Runtime's own check, behind the digests: weights and their packed form must agree."""
    data = prepacked_copy / DATA
    raw = bytearray(data.read_bytes())
    raw[-64:] = bytes(byte ^ 1 for byte in raw[-64:])
    data.write_bytes(raw)
    with pytest.raises(DeviceError, match="paligemma-edge prepack"):
        Device(name="cpu", threads=1).open_session(data.with_suffix(""), optimized=True)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("processor_name", lambda: "Another CPU"),
        ("instruction_sets", lambda: ["sse2"]),
        ("describe_runtime", lambda: "ONNX Runtime 9.9.9"),
    ],
)
def test_on_another_device_the_originals_are_used(
    prepacked_copy: Path,
    name: str,
    other: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["inspect", str(prepacked_copy)]) == 0
    assert "(this device)" in capsys.readouterr().out
    damage(prepacked_copy / DATA)
    monkeypatch.setattr(prepacked, name, other)
    model = PaliGemma(prepacked_copy)
    assert model._loaded.prepacked is None
    assert DATA not in model._loaded.verified_files
    assert cli.main(["inspect", str(prepacked_copy)]) == 0
    assert "(not this device, so it is not used)" in capsys.readouterr().out


def test_the_fingerprint_can_be_read_and_distinguishes_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = prepacked.fingerprint()
    assert f"ONNX Runtime {ort.__version__}" in here
    monkeypatch.setattr(prepacked, "processor_name", lambda: "A")
    monkeypatch.setattr(prepacked, "instruction_sets", lambda: ["b", "c"])
    one = prepacked.fingerprint()
    monkeypatch.setattr(prepacked, "instruction_sets", lambda: ["b"])
    assert len({here, one, prepacked.fingerprint()}) == 3
    assert one.startswith("A, ")


def test_priming_again_gives_a_bundle_that_works(prepacked_copy: Path) -> None:
    before = Bundle.open(prepacked_copy).manifest
    prepack(prepacked_copy)
    again = Bundle.open(prepacked_copy)
    again.verify(again.manifest.files)
    assert again.manifest.files.keys() == before.files.keys()
    assert again.manifest.prepacked == before.prepacked
    assert not list(prepacked_copy.glob(".*"))


def test_what_was_prepacked_is_removed(prepacked_copy: Path, shapes_bundle: Path) -> None:
    assert remove_prepacked(prepacked_copy) == [VARIANT]
    before, after = files(shapes_bundle), files(prepacked_copy)
    assert {**after, MANIFEST: b""} == {**before, MANIFEST: b""}
    assert Bundle.open(prepacked_copy).manifest == Bundle.open(shapes_bundle).manifest
    assert remove_prepacked(prepacked_copy) == []
    with pytest.raises(OptionError, match="prepacked are none"):
        remove_prepacked(prepacked_copy, VARIANT)


def test_a_removal_that_was_killed_at_any_step_is_finished_by_the_next(
    prepacked_copy: Path, shapes_bundle: Path
) -> None:
    for path in prepacked_copy.glob("prepacked/*/*.data"):
        path.write_bytes(b"")  # their sizes are not looked at, and every step gets a copy
    before = files(shapes_bundle)
    removed = set()
    for left in at_each_step(prepacked_copy, f"{remove_prepacked.__module__}:remove_prepacked"):
        removed.add(tuple(remove_prepacked(left)))
        assert {**files(left), MANIFEST: b""} == {**before, MANIFEST: b""}
        assert Bundle.open(left).manifest == Bundle.open(shapes_bundle).manifest
        shutil.rmtree(left)
    assert removed == {(VARIANT,), ()}


def test_a_variant_that_is_replaced_takes_its_priming_with_it(prepacked_copy: Path) -> None:
    bundle = Bundle.open(prepacked_copy)
    variant = bundle.manifest.variants[VARIANT]
    with extend_bundle(bundle, VARIANT, overwrite=True) as writer:
        for name in variant.files:
            writer.write(name, bundle.file(name).read_bytes())
        writer.finish(lambda m: type(m)(**{**vars(m), "variants": {VARIANT: variant}}))
    assert Bundle.open(prepacked_copy).manifest.prepacked == {}
    assert not (prepacked_copy / "prepacked").exists()
    assert PaliGemma(prepacked_copy)._loaded.prepacked is None


def test_a_graph_is_made_from_verified_files_only(shapes_copy: Path) -> None:
    damage(shapes_copy / f"{VARIANT}/decoder.onnx.data")
    before = files(shapes_copy)
    with pytest.raises(BundleError, match="differs from its sha256"):
        prepack(shapes_copy)
    assert files(shapes_copy) == before


def test_an_interrupt_changes_nothing(shapes_copy: Path) -> None:
    before = files(shapes_copy)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepack(shapes_copy, progress=stop)
    assert files(shapes_copy) == before
    assert not (shapes_copy / "prepacked").exists()


def test_a_disk_that_fills_up_changes_nothing(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(shapes_copy)
    save_session = Device.save_session

    def truncated(self: Device, path: Path, target: Path) -> None:
        save_session(self, path, target)
        Path(f"{target}.data").write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(Device, "save_session", truncated)
        with pytest.raises(DeviceError, match="cannot open"):
            prepack(shapes_copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OutputError, match="free some or choose another disk") as error:
        prepack(shapes_copy)
    assert error.value.errno == errno.ENOSPC
    assert files(shapes_copy) == before


@pytest.mark.parametrize(("variant", "match"), [("cpu-int1", "the bundle has cpu-fp32")])
def test_a_variant_that_is_not_there_is_reported(
    shapes_copy: Path, variant: str, match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        prepack(shapes_copy, variant)


def test_from_the_command_line_without_the_packages_of_export(shapes_copy: Path) -> None:
    before = files(shapes_copy)
    done = call("prepack", shapes_copy, "--variant", VARIANT, light=True)
    assert (done.returncode, done.stdout.startswith(f"prepacked {VARIANT} ")) == (0, True), done
    assert stages_of(done.stderr.splitlines()) == ["packing weights"]
    assert call("inspect", shapes_copy, light=True).stdout.count("(this device)") == 1
    line = refused("prepack", shapes_copy, "--variant", "x", light=True, code=2)
    assert "the bundle has cpu-fp32" in line
    done = call("prepack", shapes_copy, "--remove", light=True)
    assert done.stdout == f"removed what was prepacked: {VARIANT}\n"
    assert files(shapes_copy).keys() == before.keys()


def test_inspect_lists_prepacked_variants_where_onnxruntime_is_absent(
    prepacked_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: Bundle, *, whole: bool) -> list[str]:
        raise MissingExtraError

    monkeypatch.setattr(prepacked, "describe", absent)
    assert cli.main(["inspect", str(prepacked_bundle)]) == 0
    assert f"{VARIANT}, not used: no ONNX Runtime is here" in capsys.readouterr().out
