"""What lies beside the weights goes into the bundle: the mask decoder, licence and terms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.export.exporter import export
from paligemma_edge.export.hub.cache import google_model
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError, CheckpointError, OptionError
from paligemma_edge.runtime.manifest import Manifest
from tests.helpers.big_vision_file import as_big_vision, save
from tests.helpers.fake_hub import keep

TERMS = "https://ai.google.dev/gemma/terms"


@pytest.fixture
def checkpoint(shapes_checkpoint: Path, tmp_path: Path) -> Path:
    """The sample model, with its mask decoder and its licence; to be changed."""
    return Path(shutil.copytree(shapes_checkpoint, tmp_path / "paligemma-3b-mix-224"))


def exported(source: Path, **options: Any) -> tuple[Manifest, list[str]]:  # noqa: ANN401
    lines: list[str] = []
    bundle = source.parent / "x.bundle"
    manifest = export(source, bundle, overwrite=True, log=lines.append, **options)
    opened = Bundle.open(bundle)
    opened.verify(opened.manifest.files)
    assert opened.manifest == manifest
    return manifest, lines


def has_masks(manifest: Manifest) -> bool:
    return "mask_decoder" in manifest.variants["cpu-fp32"].graphs


def test_the_mask_decoder_beside_the_weights_is_taken(checkpoint: Path) -> None:
    manifest, lines = exported(checkpoint)
    assert has_masks(manifest)
    assert manifest.source["mask_decoder"].startswith("vae-oid.npz (sha256 ")
    assert lines[0] == f"masks: {checkpoint / 'vae-oid.npz'} is taken"


def test_the_mask_decoder_can_be_left_out(checkpoint: Path) -> None:
    manifest, lines = exported(checkpoint, mask_decoder=False)
    assert not has_masks(manifest)
    assert "mask_decoder" not in manifest.source
    assert not any(line.startswith("masks") for line in lines)


def test_without_a_mask_decoder_its_place_is_named(checkpoint: Path) -> None:
    masks = checkpoint / "vae-oid.npz"
    masks.rename(checkpoint.parent / "other.npz")
    manifest, lines = exported(checkpoint)
    assert not has_masks(manifest)
    assert "`segment` will give boxes" in lines[0]
    assert "https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz" in lines[0]
    manifest, lines = exported(checkpoint, mask_decoder=checkpoint.parent / "other.npz")
    assert has_masks(manifest)
    assert manifest.source["mask_decoder"].startswith("other.npz (")
    assert not any(line.startswith("masks") for line in lines)


def test_a_damaged_mask_decoder_beside_the_weights(checkpoint: Path) -> None:
    (checkpoint / "vae-oid.npz").write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"vae-oid\.npz: .*, or --no-mask-decoder"):
        exported(checkpoint)
    assert not has_masks(exported(checkpoint, mask_decoder=False)[0])


def test_beside_an_npz(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    heads = (text["num_attention_heads"], text["num_key_value_heads"])
    arrays = as_big_vision(checkpoint, vision["num_attention_heads"], *heads)
    folder = tmp_path / "jax"
    folder.mkdir()
    for name in ("vae-oid.npz", "LICENSE", "tokenizer.model"):
        shutil.copy(checkpoint / name, folder)
    manifest, _ = exported(save(folder / "shapes.npz", arrays))
    assert has_masks(manifest)
    assert manifest.licenses == ("licenses/LICENSE",)


def test_a_folder_with_nothing_but_the_mask_decoder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    shutil.copy(checkpoint / "vae-oid.npz", tmp_path / "masks")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        exported(tmp_path / "masks")


def test_licence_and_note_are_kept_by_what_changes_the_bundle(checkpoint: Path) -> None:
    (checkpoint / "NOTICE").write_bytes(b"\x00")
    (checkpoint / "USE_POLICY.md").write_text("Do no harm.\n")
    manifest, lines = exported(checkpoint, note="v2 \u2013 d\u00e9tecteur")
    assert manifest.licenses == ("licenses/LICENSE", "licenses/USE_POLICY.md")
    assert "terms" not in manifest.source
    assert lines[1:] == [
        "licence: the bundle has LICENSE, USE_POLICY.md of the checkpoint",
        "NOTICE is left out: it is not plain UTF-8 text",
    ]
    bundle = checkpoint.parent / "x.bundle"
    plain = QuantizeOptions(calibrate=False, report=False)
    quantize(bundle, [load_recipe("cpu-int8")], plain)
    after = Bundle.open(bundle)
    assert list(after.manifest.variants) == ["cpu-fp32", "cpu-int8"]
    assert (after.manifest.note, after.manifest.licenses) == (manifest.note, manifest.licenses)
    assert after.file("licenses/USE_POLICY.md").read_text() == "Do no harm.\n"
    (bundle / "licenses" / "USE_POLICY.md").write_text("Do any harm\n")
    with pytest.raises(BundleError, match=r"USE_POLICY\.md differs .*copy or export the bundle"):
        after.verify(after.manifest.files)


def test_terms_are_named_only_of_a_model_that_is_known(checkpoint: Path, tmp_path: Path) -> None:
    """A folder may have any name; that it came from Google's repository is known of a snapshot."""
    (checkpoint / "LICENSE").unlink()
    manifest, lines = exported(checkpoint)
    assert "terms" not in manifest.source
    assert lines[-1].endswith("pass the bundle on with the terms that the model came with")
    manifest, lines = exported(keep(tmp_path / "hub", "google/paligemma2-3b-pt-224", checkpoint))
    assert manifest.source["terms"] == TERMS
    assert lines[-1].endswith(TERMS)
    for name in ("google/gemma-3", "me/paligemma-x", "google/x-paligemma-3b"):
        snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / ("a" * 40)
        assert not google_model(snapshot)


@pytest.mark.parametrize(
    ("note", "problem"),
    [("x" * 501, "has 501 characters, wanted at most 500"), ("a\nb", "several lines")],
)
def test_a_note_that_cannot_be_shown(note: str, problem: str, checkpoint: Path) -> None:
    with pytest.raises(OptionError, match=problem):
        exported(checkpoint, note=note)
    exported(checkpoint, note="x" * 500)
    path = checkpoint.parent / "x.bundle" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": note}))
    with pytest.raises(BundleError, match=problem):
        Bundle.open(path.parent)
