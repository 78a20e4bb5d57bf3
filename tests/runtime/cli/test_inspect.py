"""What `inspect` says of any bundle, a stranger's too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.loading import variants
from paligemma_edge.runtime.loading.variants import VariantChoice
from paligemma_edge.runtime.manifest import Manifest

Captured = pytest.CaptureFixture[str]


def rewrite(bundle: Path, **fields: Any) -> None:  # noqa: ANN401
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_a_stranger_wrote_is_printed_short_and_harmless(
    shapes_copy: Path, capsys: Captured
) -> None:
    origin = {"checkpoint": "mine\x1b[2J\nvariant  good", "\x1b]0;x\x07": "x" * 100_000}
    prepacked = {"device": "\x9b" * 9999, "graphs": {}, "files": []}
    rewrite(shapes_copy, source=origin, prepacked={"cpu-fp32": prepacked})
    (shapes_copy / "a\x1b[2J").touch()
    assert cli.main(["inspect", str(shapes_copy), "--files", "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert r"mine\x1b[2J\nvariant  good" in shown
    assert r"a\x1b[2J: not listed in the manifest" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    assert max(map(len, shown.split("\n"))) <= 600


def test_the_default_is_the_one_that_opening_the_bundle_would_choose(
    shapes_bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[CachePlan | None] = []

    def choose(manifest: Manifest, *, plan: CachePlan | None) -> VariantChoice:
        plans.append(plan)
        return VariantChoice("cpu-fp32", manifest.variants["cpu-fp32"], "cpu-fp32 was chosen")

    monkeypatch.setattr(variants, "choose_variant", choose)
    assert cli.main(["inspect", str(shapes_bundle)]) == 0
    assert cli.main(["inspect", str(shapes_bundle), "--max-batch-size", "16"]) == 0
    assert plans == [None, CachePlan(max_batch_size=16, max_length=512)]
    assert capsys.readouterr().out.count("\ndefault  cpu-fp32 was chosen\n") == 2
