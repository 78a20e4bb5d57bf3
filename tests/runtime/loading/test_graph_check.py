"""Graphs whose digests are right and whose content is not: one line, whatever names them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.cli.main import main
from paligemma_edge.runtime.errors import BundleError, DeviceError

GRAPH = "cpu-fp32/{}.onnx"


def _rewrite(bundle: Path, graph: str, old: bytes, new: bytes) -> None:
    """Other bytes in a graph, and their digest in the manifest, as who made the bundle can."""
    path, manifest = bundle / GRAPH.format(graph), bundle / "manifest.json"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    data = json.loads(manifest.read_text())
    data["files"][GRAPH.format(graph)]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ("vision_encoder", "pixel_values"),  # an input
        ("projector", "image_features"),  # an output
        ("decoder", "past_key_values.0.key"),
        ("decoder", "present.1.value"),
        ("decoder", "batch"),  # the name of a size
    ],
)
def test_names_of_tensors_that_are_not_utf8(shapes_copy: Path, graph: str, name: str) -> None:
    _rewrite(shapes_copy, graph, name.encode(), name[:-1].encode() + b"\xff")
    with pytest.raises(BundleError, match=f"{graph} has .* names are not UTF-8; the manifest"):
        PaliGemma(shapes_copy)


@pytest.mark.parametrize("name", ["MatMul", "com.microsoft", "decoder.onnx.data"])
def test_other_names_that_are_not_utf8(shapes_copy: Path, name: str) -> None:
    """ONNX Runtime's own message holds them."""
    _rewrite(shapes_copy, "decoder", name.encode(), name[:-1].encode() + b"\xff")
    with pytest.raises(DeviceError, match="names something which is not UTF-8"):
        PaliGemma(shapes_copy)


@pytest.mark.parametrize(
    "name", ["input_ids", "batch", "MatMul", "rotary.cos", "decoder.onnx.data", "paligemma"]
)
@pytest.mark.parametrize("command", ["quantize", "adapter"])
def test_names_that_are_not_utf8_where_graphs_are_made(
    shapes_copy: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _rewrite(shapes_copy, "decoder", name.encode(), name[:-1].encode() + b"\xff")
    before = (shapes_copy / "manifest.json").read_bytes()
    more = {"quantize": ["cpu-int4", "--no-calibration"], "adapter": ["lora", "--name", "x"]}
    assert main([command, str(shapes_copy), *more[command], "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "cpu-fp32/decoder.onnx has names that are not UTF-8; export the bundle again"
    )
    assert (shapes_copy / "manifest.json").read_bytes() == before


def test_weights_that_are_not_in_the_bundle(
    shapes_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _rewrite(shapes_copy, "decoder", b"decoder.onnx.data", b"../../../../shado")
    assert main(["quantize", str(shapes_copy), "cpu-int4", "--no-calibration", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "names weights in 'cpu-fp32/../../../../shado', which is not there" in line


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x08\x0a" * 40])
def test_what_is_no_graph(
    shapes_copy: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shapes_copy / GRAPH.format("projector")
    _rewrite(shapes_copy, "projector", path.read_bytes(), content)
    data = json.loads((shapes_copy / "manifest.json").read_text())
    data["files"][GRAPH.format("projector")]["bytes"] = len(content)
    (shapes_copy / "manifest.json").write_text(json.dumps(data))
    assert main(["quantize", str(shapes_copy), "cpu-int4", "--no-calibration", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "export" in line
    with pytest.raises(DeviceError):
        PaliGemma(shapes_copy)


@pytest.mark.parametrize("name", ["odd", "o\n\x1b[2J", "\N{SNOWMAN}" * 999])
def test_a_graph_of_no_known_name(shapes_copy: Path, name: str) -> None:
    data = json.loads((shapes_copy / "manifest.json").read_text())
    data["variants"]["cpu-fp32"]["graphs"][name] = GRAPH.format("decoder")
    (shapes_copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="the manifest has a graph ") as caught:
        PaliGemma(shapes_copy)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
