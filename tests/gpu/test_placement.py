"""Every graph of every variant runs on the GPU alone, and nothing is copied on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.device.ort import ort
from tests.gpu.on_gpu import BUNDLES, VARIANTS, Where

pytestmark = pytest.mark.gpu
COPIES = (b"MemcpyFromHost", b"MemcpyToHost")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BUNDLES)
def test_no_node_is_elsewhere_and_none_copies(
    name: str,
    variant: str,
    where: Where,
    device: Device,
    on_cpu: bool,
    tmp_path: Path,
    patched: pytest.MonkeyPatch,
) -> None:
    """What ONNX Runtime made of a graph is saved: a copy that it put in is a node with a name."""
    if on_cpu and variant == "cuda-bf16":
        pytest.skip("ONNX Runtime has no CPU kernels for bfloat16")
    bundle, target = where.bundle(name), tmp_path / "made.onnx"
    options = Device._options

    def saving(self: Device) -> ort.SessionOptions:
        changed = options(self)
        changed.optimized_model_filepath = os.fspath(target)
        return changed

    patched.setattr(Device, "_options", saving)
    for graph, file in bundle.manifest.variants[variant].graphs.items():
        session = device.open_session(bundle.path / file)  # DeviceError names a node elsewhere
        made = target.read_bytes()
        target.unlink()
        assert all(output.name.encode() in made for output in session.get_outputs())
        assert [copy for copy in COPIES if copy in made] == [], f"{graph} copies"
