"""What the tests on a GPU share: a folder of bundles, and models that are open on the GPU.

The tests need the runtime's packages, pytest and hypothesis. The folder is made by
`python -m tests.gpu.prepare FOLDER`, here or on another machine that has the exporter, and given
as `--prepared FOLDER`; without, it is made first. `--on-cpu` runs the same tests over ONNX
Runtime's CPU provider, which finds mistakes of the tests, but none of the GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.device.cuda.check import find_gpu
from paligemma_edge.runtime.device.device import Device, open_device
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import DeviceError
from tests.gpu.on_gpu import SHAPES, Requests, Where, sample_requests

Record = Callable[[str, object], None]
_FIGURES = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--prepared", metavar="FOLDER", help="what `python -m tests.gpu.prepare` made")
    group.addoption("--on-cpu", action="store_true", help="the same code without a GPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and onnxruntime-gpu")
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if figures := config.stash[_FIGURES]:
        terminalreporter.section("figures")
        for name, value in figures.items():
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Record:
    """Print a figure at the end of the run."""

    def keep(name: str, value: object) -> None:
        pytestconfig.stash[_FIGURES][name] = str(value)

    return keep


# An option is unknown where this file was found after the command line was read.
@pytest.fixture(scope="session")
def on_cpu(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--on-cpu", False))


@pytest.fixture(scope="session", autouse=True)
def _gpu(on_cpu: bool) -> None:
    """Skip, with a reason, where there is no GPU."""
    if on_cpu:
        return
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA; install onnxruntime-gpu in its place")
    try:
        find_gpu()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def gpu(on_cpu: bool) -> None:
    """For tests of what a CPU does not have."""
    if on_cpu:
        pytest.skip("a GPU alone shows it")


@pytest.fixture(scope="session")
def prepared(
    _gpu: None, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder with the bundles."""
    if given := pytestconfig.getoption("--prepared", None):
        return Path(given)
    if importlib.util.find_spec("onnx_ir") is None:
        pytest.skip("the exporter is not installed; give --prepared FOLDER")
    from tests.gpu.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "gpu"
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def where(prepared: Path, on_cpu: bool) -> Where:
    """What opens models, each once."""
    return Where(prepared, on_cpu)


@pytest.fixture(scope="session")
def device(_gpu: None, on_cpu: bool) -> Device:
    return Device(name="cpu", threads=2) if on_cpu else open_device("cuda")


@pytest.fixture(scope="session")
def requests() -> Requests:
    """The images that ship with the sample model, and their prompts."""
    return sample_requests()


@pytest.fixture(scope="session")
def lossless(where: Where) -> PaliGemma:
    return where.model(SHAPES, "cpu-fp32")


@pytest.fixture(scope="session")
def fp16(where: Where) -> PaliGemma:
    return where.model(SHAPES, "cuda-fp16")


@pytest.fixture
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
