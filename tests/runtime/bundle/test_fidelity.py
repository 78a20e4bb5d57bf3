"""The report of a variant: it survives its JSON, and a damaged one is one line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import (
    Fidelity,
    LayerError,
    MemoryUse,
    Spread,
    TaskScore,
    plot_name,
    report_name,
)
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.cli.main import main
from paligemma_edge.runtime.diagnostics.memory_use import measure_memory
from paligemma_edge.runtime.errors import BundleError

COUNTS = st.integers(1, 1 << 50)
SHARES = st.floats(0, 1)
SIZES = st.floats(0, allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(codec="utf-8"))
SPREADS = st.builds(Spread, mean=SIZES, p99=SIZES, largest=SIZES)
REPORTS = st.builds(
    Fidelity,
    variant=WORDS,
    reference=WORDS,
    recipe=WORDS,
    questions=COUNTS,
    tokens=COUNTS,
    forced_agreement=SHARES,
    free_agreement=SHARES,
    same_answers=SHARES,
    divergence=SPREADS,
    logit_error=SPREADS,
    box_iou=st.none() | SHARES,
    mask_iou=st.none() | SHARES,
    tasks=st.dictionaries(
        WORDS, st.builds(TaskScore, questions=COUNTS, reference=SHARES, variant=SHARES)
    ),
    disk_bytes=COUNTS,
    memory=st.none() | st.builds(MemoryUse, peak_bytes=COUNTS, anonymous_bytes=COUNTS),
    layers=st.lists(
        st.builds(
            LayerError,
            graph=WORDS,
            layer=WORDS,
            scheme=WORDS,
            relative_error=st.none() | SIZES,
        ),
        max_size=3,
    ).map(tuple),
    notes=st.lists(WORDS, max_size=3).map(tuple),
)
SPREAD = Spread(mean=0.001, p99=0.02, largest=0.3)
REPORT = Fidelity(
    variant="cpu-fp32",
    reference="cpu-other",
    recipe="none",
    questions=49,
    tokens=555,
    forced_agreement=0.982,
    free_agreement=0.9,
    same_answers=0.8,
    divergence=SPREAD,
    logit_error=SPREAD,
    box_iou=0.971,
    mask_iou=None,
    tasks={"caption": TaskScore(questions=12, reference=0.75, variant=0.5)},
    disk_bytes=5_000_000,
    memory=MemoryUse(peak_bytes=123_000_000, anonymous_bytes=45_000_000),
    layers=(LayerError(graph="decoder", layer="lm_head", scheme="int8", relative_error=0.01),),
    notes=("a note",),
)


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report: Fidelity) -> None:
    assert Fidelity.from_json(report.to_json().encode()) == report


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_null(error: float) -> None:
    layer = LayerError(graph="decoder", layer="lm_head", scheme="int4", relative_error=error)
    text = dataclasses.replace(REPORT, layers=(layer,)).to_json()
    assert json.loads(text)["layers"][0]["relative_error"] is None
    assert Fidelity.from_json(text).layers == (dataclasses.replace(layer, relative_error=None),)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(name)


def having(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("tokens"), "no tokens"),
        (having("tokens", "many"), "tokens holds 'many', wanted a int"),
        (having("tokens", True), "tokens"),
        (having("tokens", 0), "tokens is 0"),
        (having("forced_agreement", 1.5), "forced_agreement is 1.5"),
        (having("forced_agreement", None), "wanted a number"),
        (having("box_iou", -1), "box_iou"),
        (having("divergence", [1]), "wanted an object"),
        (having("divergence", {"mean": 1}), "no p99, largest"),
        (having("divergence", {"mean": -1, "p99": 0, "largest": 0}), "mean is -1"),
        (having("divergence", {"mean": 10**400, "p99": 0, "largest": 0}), "finite"),
        (having("tasks", {"x": {"questions": 1, "reference": 2, "variant": 1}}), "reference"),
        (having("tasks", [1]), "wanted an object"),
        (having("memory", {"peak_bytes": 1}), "no anonymous_bytes"),
        (having("layers", "none"), "wanted a list"),
        (having("layers", [1]), r"layers\[0\]"),
        (having("layers", [{**dataclasses.asdict(REPORT.layers[0]), "relative_error": -1}]), "-1"),
        (having("notes", [1]), "notes"),
        (having("notes", "x" * 999), "x{30}\\.\\.\\.x"),
    ],
)
def test_a_damaged_report_is_one_line(
    damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = json.loads(REPORT.to_json())
    damage(data)
    with pytest.raises(BundleError, match=message) as caught:
        Fidelity.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 99_999, '{"tokens": NaN}', b"\xff"])
def test_what_is_no_report_is_one_line(text: str | bytes) -> None:
    with pytest.raises(BundleError, match="not a fidelity report") as caught:
        Fidelity.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_newer_field_is_ignored() -> None:
    data = {**json.loads(REPORT.to_json()), "colour": "red"}
    assert Fidelity.from_json(json.dumps(data)) == REPORT


def amended(bundle: Path, data: bytes) -> Bundle:
    name = report_name("cpu-fp32")
    return amend_bundle(Bundle.open(bundle), {name: data}, lambda manifest: manifest)


def test_a_bundle_has_its_report(shapes_copy: Path) -> None:
    assert Fidelity.find(Bundle.open(shapes_copy), "cpu-fp32") is None
    bundle = amended(shapes_copy, REPORT.to_json().encode())
    assert Fidelity.find(bundle, "cpu-fp32") == REPORT
    assert (report_name("a"), plot_name("a")) == ("fidelity/a.json", "fidelity/a.png")


def test_a_report_is_refused_whether_its_digest_is_right_or_wrong(shapes_copy: Path) -> None:
    bundle = amended(shapes_copy, b'{"tokens": 1}')
    with pytest.raises(BundleError, match=r"fidelity/cpu-fp32.json.*has no variant"):
        Fidelity.find(bundle, "cpu-fp32")
    bundle = amended(shapes_copy, REPORT.to_json().encode())
    path = shapes_copy / report_name("cpu-fp32")
    path.write_bytes(path.read_bytes().replace(b"555", b"556"))
    with pytest.raises(BundleError, match="differs from its sha256"):
        Fidelity.find(bundle, "cpu-fp32")


def test_inspect_shows_a_report_in_a_few_lines(
    shapes_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(shapes_copy), "--verbose"]) == 0
    before = capsys.readouterr().out.splitlines()
    amended(shapes_copy, REPORT.to_json().encode())
    assert main(["inspect", str(shapes_copy), "--verbose"]) == 0
    text = capsys.readouterr().out
    added = set(text.splitlines()) - set(before)
    assert sum(line.startswith("  ") for line in added) == 5  # below the variant's name
    assert any(re.fullmatch("cpu-fp32 .* 80.0%  default here", line) for line in added)
    assert max(map(len, added)) < 140
    for words in (
        "98.2% of 555 tokens agree, 80.0% of answers are identical",
        "KL divergence 0.001 nats",
        "boxes 0.971",
        "caption 0.500 (0.750)",
        "123 MB of memory at its peak, 45 MB",
    ):
        assert words in text
    assert "masks 0" not in text


def test_inspect_tells_of_a_damaged_report_and_goes_on(
    shapes_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amended(shapes_copy, b"{}")
    assert main(["inspect", str(shapes_copy)]) == 0
    text = capsys.readouterr().out
    assert "the fidelity report of cpu-fp32 is not readable: " in text
    assert "\nmemory " in text
    assert main(["inspect", str(shapes_copy), "--verbose"]) == 0


def test_memory_is_that_of_a_process_of_its_own(shapes_bundle: Path, shapes_images: Path) -> None:
    image = shapes_images / "00.png"
    memory = measure_memory(shapes_bundle, "cpu-fp32", image, "caption en")
    assert memory is not None
    assert memory.peak_bytes >= memory.anonymous_bytes > 20e6
    assert memory.peak_bytes < 1e9
    assert measure_memory(shapes_bundle, "cpu-none", image, "caption en") is None
