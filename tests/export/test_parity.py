"""Bundles compared with transformers, on small models of many shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import DynamicCache

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.export.verify.parity import ParityReport
from paligemma_edge.export.verify.reference import Reference
from paligemma_edge.export.verify.samples import Sample, default_samples, read_samples
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.request_list import Images
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.images.batch import ImageBatch, ImageReader
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.timing import Stopwatch

MakeCheckpoint = Callable[..., Path]


def gemma2(heads: int, **fields: float | None) -> dict[str, Any]:
    """The decoder of a PaliGemma 2: two heads share keys and values in each of its sizes."""
    shared = {"num_attention_heads": heads, "num_key_value_heads": heads // 2}
    return {"model_type": "gemma2", **shared, "query_pre_attn_scalar": 24, **fields}


MODELS: dict[str, dict[str, Any]] = {
    "layout A, one kv head": {},
    "layout B, two kv heads, bfloat16": {
        "layout": "B",
        "dtype": "bfloat16",
        "text": {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3},
        "vision": {"num_hidden_layers": 1, "num_attention_heads": 4},
    },
    "layout C, float16, width no power of two": {
        "layout": "C",
        "dtype": "float16",
        "text": {"hidden_size": 72, "intermediate_size": 88, "head_dim": 32},
        "vision": {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40},
    },
    "the Hub's JSON, head_dim 256 as a default": {
        "dialect": "hub",
        "dtype": "bfloat16",
        "text": {"head_dim": 256, "num_attention_heads": 8, "hidden_size": 64},
    },
    "one layer, odd patches and a rest at the border": {
        "text": {"num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2},
        "vision": {"image_size": 75, "patch_size": 15, "num_hidden_layers": 3},
    },
    "image of 7 x 7 patches with 5 pixels over": {"vision": {"image_size": 103}},
    "224": {"vision": {"image_size": 224}, "text": {"num_key_value_heads": 2}},
    "448": {"vision": {"image_size": 448}, "layout": "B"},
    "896": {
        "vision": {"image_size": 896, "hidden_size": 16, "num_hidden_layers": 1},
        "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        "dtype": "bfloat16",
        "layout": "C",
    },
    "2: heads of the 3B, the Hub's JSON": {
        "dialect": "hub",
        "dtype": "bfloat16",
        "text": gemma2(8, hidden_size=72, head_dim=256, query_pre_attn_scalar=256),
    },
    "2: heads of the 10B, layout B, three layers": {
        "layout": "B",
        "dtype": "bfloat16",
        "text": gemma2(16, hidden_size=224, num_hidden_layers=3),
    },
    "2: heads of the 28B, layout C, scale not of the head": {
        "layout": "C",
        "text": gemma2(32, hidden_size=576, query_pre_attn_scalar=18),
    },
    "2: low softcaps": {
        "text": gemma2(4, attn_logit_softcapping=1.0, final_logit_softcapping=2.0),
        "vision": {"image_size": 75, "patch_size": 15},
    },
    "2: no softcaps, no window": {
        "dtype": "float16",
        "text": gemma2(4, attn_logit_softcapping=None, final_logit_softcapping=None)
        | {"sliding_window": None, "num_hidden_layers": 1},
    },
    "2: an image longer than the window": {
        "layout": "B",
        "text": gemma2(4, sliding_window=8, num_hidden_layers=3),
    },
    "2: 448": {"vision": {"image_size": 448}, "text": gemma2(2)},
    "2: 896": {
        "vision": {"image_size": 896, "hidden_size": 16, "num_hidden_layers": 1},
        "text": gemma2(2, hidden_size=32, intermediate_size=32, num_hidden_layers=1),
        "dtype": "bfloat16",
    },
}
SMALL = [name for name in MODELS if not name.endswith(("448", "896"))]
PROMPTS = [
    "cap",
    "caption en",
    "detect red circle ; blue square",
    "answer en how many? " * 3,
    "x y",
]


@dataclass(frozen=True)
class Pair:
    """A bundle and the checkpoint that it was exported from."""

    bundle: Path
    checkpoint: Path

    def model(self) -> PaliGemma:
        return PaliGemma(self.bundle, device="cpu")


@pytest.fixture(scope="module")
def pair(make_checkpoint: MakeCheckpoint) -> Callable[[str], Pair]:
    """Make each model of the list once, however many tests use it."""
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            checkpoint = make_checkpoint(**MODELS[name])
            export(checkpoint, checkpoint / "bundle")
            made[name] = Pair(checkpoint / "bundle", checkpoint)
        return made[name]

    return get


def assert_equal_to_the_original(report: ParityReport) -> None:
    figures = {s.stage: f"{s.absolute:.2e} {s.relative:.2e}" for s in report.stages}
    print(report.variant, figures)
    assert report.passed, figures
    errors = {stage.stage: stage.relative for stage in report.stages}
    assert errors["token ids"] == errors["answer"] == 0
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_equals_the_original(name: str, pair: Callable[[str], Pair]) -> None:
    made = pair(name)
    samples = default_samples()[:: 9 if name.endswith("896") else 4]
    report = verify(made.bundle, made.checkpoint, samples=samples, max_new_tokens=6)
    assert_equal_to_the_original(report)
    assert report.steps > 0


def test_the_sample_model_equals_the_original(
    shapes_copy: Path, shapes_checkpoint: Path, shapes_images: Path
) -> None:
    samples = read_samples(shapes_images)
    report = verify(shapes_copy, shapes_checkpoint, samples=samples, max_new_tokens=40)
    assert_equal_to_the_original(report)
    assert report.samples == len(samples) > 40


@pytest.mark.parametrize("name", SMALL)
def test_prefill_and_steps_equal_one_pass_with_the_prefix_mask(
    name: str, pair: Callable[[str], Pair]
) -> None:
    made = pair(name)
    sample = default_samples()[1]
    answer = [7, 300, 1200, 2150, 5, 900]
    expected = Reference.open(made.checkpoint).forward_full(sample, answer)
    assert_close(replayed(made.model(), sample, answer), expected)


@pytest.mark.parametrize("name", [*SMALL[1:4], "2: low softcaps"])
def test_several_images_equal_the_original(name: str, pair: Callable[[str], Pair]) -> None:
    made = pair(name)
    first, _, _, second, _, _, third, _, _ = (sample.images[0] for sample in default_samples())
    samples = [Sample((first, second), "caption en"), Sample((third, first, second), "detect cat")]
    report = verify(made.bundle, made.checkpoint, samples=samples, max_new_tokens=4)
    assert_equal_to_the_original(report)


def test_the_order_of_images_matters(pair: Callable[[str], Pair]) -> None:
    model = pair("layout A, one kv head").model()
    images = (default_samples()[0].images[0], default_samples()[3].images[0])
    there = replayed(model, Sample(images, "caption en"), [])
    back = replayed(model, Sample(images[::-1], "caption en"), [])
    assert np.abs(there - back).max() > 1e-3


def test_the_first_position_sees_the_last_token_of_the_prompt(
    pair: Callable[[str], Pair],
) -> None:
    made = pair("layout B, two kv heads, bfloat16")
    image = default_samples()[0].images
    samples = [Sample(image, "caption a"), Sample(image, "caption b")]
    ours = [first_position(made.model(), sample) for sample in samples]
    theirs = [first_position_of_the_original(made.checkpoint, sample) for sample in samples]
    for ours_here, theirs_here in zip(ours, theirs, strict=True):
        # Rotary positions count from 0 here and from 1 there, so the keys are turned differently.
        assert_close(ours_here[1], theirs_here[1])
    for first, second in (ours, theirs):
        assert np.abs(first[0] - second[0]).max() > 1e-3
        assert np.abs(first[1] - second[1]).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "layout A, one kv head",
        "layout B, two kv heads, bfloat16",
        "2: heads of the 10B, layout B, three layers",
    ],
)
@pytest.mark.parametrize("slots", [2, 3])
def test_slots_equal_single_runs_bitwise(
    name: str, slots: int, pair: Callable[[str], Pair]
) -> None:
    assert_slots_equal_single_runs(pair(name).model(), slots)


@pytest.mark.all_cores
def test_slots_of_the_sample_model_equal_single_runs_bitwise(shapes_model: PaliGemma) -> None:
    assert_slots_equal_single_runs(shapes_model, 3)


def test_a_batch_gives_the_answers_of_single_runs(shapes_model: PaliGemma) -> None:
    images = [sample.images[0] for sample in default_samples()[::3]]
    requests: list[tuple[Images, str]] = [(images[i % 3], p) for i, p in enumerate(PROMPTS)]
    requests[2] = (images[:2], PROMPTS[2])
    batch = shapes_model.generate_batch(requests, max_batch_size=2, max_new_tokens=7)
    single = [shapes_model.generate_batch([one], max_new_tokens=7)[0] for one in requests]
    assert [g.token_ids for g in batch] == [g.token_ids for g in single]
    assert [g.text for g in batch] == [g.text for g in single]


@dataclass
class Recorder:
    """Greedy sampling that records every row of logits."""

    rows: list[NDArray[np.float32]] = field(default_factory=list)

    def choose(self, logits: NDArray[np.float32], position: int) -> int:
        assert position == len(self.rows)
        self.rows.append(logits.copy())
        return Greedy().choose(logits, position)


def assert_slots_equal_single_runs(model: PaliGemma, slots: int) -> None:
    together, alone = run(model, PROMPTS, slots), [run(model, [p], 1)[0] for p in PROMPTS]
    for (tokens, rows), (tokens_alone, rows_alone) in zip(together, alone, strict=True):
        assert tokens == tokens_alone
        assert np.array_equal(rows, rows_alone)


def run(
    model: PaliGemma, prompts: Sequence[str], slots: int
) -> list[tuple[list[int], NDArray[np.float32]]]:
    """Tokens and logits of each prompt, answers of different lengths, in so many slots."""
    recorders = [Recorder() for _ in prompts]
    requests = []
    for prompt, recorder in zip(prompts, recorders, strict=True):
        options = GenerationOptions(max_new_tokens=3 + len(prompt) % 5, sampling=recorder)
        images = batch_of(model, default_samples()[len(prompt) % 9])
        requests.append(model._loaded.pipeline.request(prompt, 1, options).about(images))
    capacity = max(request.capacity for request in requests)
    tokens: list[tuple[int, ...]] = [()] * len(prompts)
    for number, answer in model._loaded.pipeline.answer(requests, slots=slots, capacity=capacity):
        tokens[number] = answer.token_ids
    return [(list(t), np.stack(r.rows)) for t, r in zip(tokens, recorders, strict=True)]


def batch_of(model: PaliGemma, sample: Sample) -> ImageBatch:
    return ImageReader(model.bundle.manifest.image).read(sample.images, Stopwatch())


def pixels_of(model: PaliGemma, sample: Sample) -> NDArray[np.float32]:
    config = model.bundle.manifest.image
    return np.stack([pixel_values(load_image(image), config) for image in sample.images])


def features_of(model: PaliGemma, sample: Sample) -> ort.OrtValue:
    return model._loaded.engine.project(model._loaded.engine.encode(pixels_of(model, sample)))


def replayed(model: PaliGemma, sample: Sample, answer: Sequence[int]) -> NDArray[np.float32]:
    """Logits [answer + 1, vocab] of a prefill and a step for each token."""
    images = model._loaded.pipeline.read_images(sample.images)
    prompt = model._loaded.pipeline.encode(images, sample.prompt)
    rows = replay(model._loaded.engine, prompt, [*answer, 0])
    return np.stack([row.whole.copy() for row in rows])


def first_position(
    model: PaliGemma, sample: Sample
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Key and value [kv_heads, head_dim] of the second layer at the first position."""
    features = features_of(model, sample)
    ids = model._loaded.encoder.encode(sample.prompt, 1)
    cache = model._loaded.engine.cache(1, features.shape()[1] + len(ids))
    model._loaded.engine.prefill(cache, 0, features, ids)
    values = cache.memory.read(cache.values).view(np.float32)
    key, value = values.reshape(-1, *cache.row_shape)[2:4, :, 0]
    return key, value


def first_position_of_the_original(
    checkpoint: Path, sample: Sample
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    reference, cache = Reference.open(checkpoint), DynamicCache()
    reference.prefill(*reference.inputs(sample), cache)
    layer: Any = cache.layers[1]
    return layer.keys[0, :, 0].detach().numpy(), layer.values[0, :, 0].detach().numpy()


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
