"""Which attention kernels ONNX Runtime takes: recorded, for they follow GPU and version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.gpu.conftest import Record
from tests.gpu.on_gpu import BUNDLES, Requests, Where

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
PRINTS = {"ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
LINE = re.compile(r"Operator=(\w+).*?SdpaKernel=(\w+)")


@pytest.mark.parametrize("xqa", ["0", "1"])
@pytest.mark.parametrize("name", BUNDLES)
def test_the_kernels_of_attention(
    name: str, xqa: str, where: Where, requests: Requests, record: Record
) -> None:
    image, prompt = requests[0]
    ask = ("run", str(where.bundle(name).path), prompt, str(image), "--variant", "cuda-fp16")
    done = subprocess.run(
        [sys.executable, "-m", "paligemma_edge", *ask],
        env={**os.environ, **PRINTS, "ORT_ENABLE_XQA": xqa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = Counter(LINE.findall(done.stdout + done.stderr))
    text = ", ".join(f"{op} {kernel} {n} times" for (op, kernel), n in sorted(counts.items()))
    record(f"{name} ORT_ENABLE_XQA={xqa}", text or "no kernel was reported")
