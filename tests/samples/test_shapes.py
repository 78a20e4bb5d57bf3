"""The shapes model: scenes, prompts, tokenizer, masks, and whether the weights answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from PIL import Image

from samples.shapes import mask_decoder
from samples.shapes.evaluate import CHECKPOINT, MEASURES, evaluate, held_out_questions
from samples.shapes.scenes import KINDS, SIDE, WORDS, Scene, draw, silhouette
from samples.shapes.scoring import (
    ParsedAnswer,
    PredictedObject,
    Predictor,
    box_iou,
    labels_are_right,
    parse_answer,
    paste,
    score,
)
from samples.shapes.tasks import (
    NamedShape,
    ShapesQuestion,
    answer_text,
    caption_text,
    location_tokens,
    make_question,
    possible_tasks,
)
from samples.shapes.write_images import IMAGES

ROOT = Path(__file__).resolve().parents[2]
CODES = tuple(range(16))


class AnyCodes(dict[tuple[str, int, int], tuple[int, ...]]):
    """The same sixteen codes for every silhouette."""

    def __missing__(self, key: tuple[str, int, int]) -> tuple[int, ...]:
        return CODES


@pytest.fixture(scope="module")
def pieces() -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=str(CHECKPOINT / "tokenizer.model"))


def _scenes(count: int) -> Iterator[Scene]:
    return (draw("train", number) for number in range(count))


# Scenes


def test_a_scene_is_a_function_of_its_number() -> None:
    one, two = draw("train", 7), draw("train", 7)
    assert np.array_equal(one.pixels, two.pixels)
    assert (one.shapes, one.word) == (two.shapes, two.word)


def test_the_splits_share_no_scene() -> None:
    drawn = [draw(split, n).pixels.tobytes() for split in ("train", "held_out") for n in range(60)]
    assert len(set(drawn)) == 120


def test_every_box_is_the_box_of_the_drawn_pixels() -> None:
    for scene in _scenes(100):
        for index, shape in enumerate(scene.shapes):
            rows, columns = np.nonzero(scene.mask(index))
            drawn = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert tuple(int(edge) for edge in drawn) == shape.box


def test_the_mask_shows_the_colour_of_the_shape() -> None:
    for scene in _scenes(40):
        for index, shape in enumerate(scene.shapes):
            mean = scene.pixels[scene.mask(index)].mean(0)
            assert _nearest_colour(mean) == shape.colour


def _nearest_colour(pixel: np.ndarray) -> str:
    from samples.shapes.scenes import COLOURS

    return min(COLOURS, key=lambda name: float(np.abs(pixel - COLOURS[name]).sum()))


def test_shapes_neither_touch_nor_change_order() -> None:
    for scene in _scenes(100):
        across = [shape.centre[1] for shape in scene.shapes]
        assert across == sorted(across)
        assert scene.owner.max() == len(scene.shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_silhouette_touches_all_edges_of_its_box(kind: str) -> None:
    for height, width in ((15, 15), (20, 17), (41, 36)):
        mask = silhouette(kind, height, width)
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="known: circle"):
        silhouette("blob", 20, 20)


# Prompts and truth


def test_prompts_have_the_prefixes_of_paligemma() -> None:
    prefixes = {"caption": "caption en", "answer": "answer en ", "ocr": "ocr"}
    for question in _questions(60):
        assert question.prompt.startswith(prefixes.get(question.task, question.task + " "))


def _questions(count: int) -> Iterator[ShapesQuestion]:
    rng = np.random.default_rng(0)
    for scene in _scenes(count):
        yield from (make_question(scene, task, rng) for task in possible_tasks(scene))


def test_answers_have_the_output_format() -> None:
    rng = np.random.default_rng(0)
    for scene in _scenes(60):
        for task in {"detect", "segment"} & set(possible_tasks(scene)):
            question = make_question(scene, task, rng)
            decoded: list[Sequence[int]] = []
            objects = _objects(question, answer_text(question, scene, AnyCodes()), decoded)
            assert [o.label for o in objects] == [shape.label for shape in question.objects]
            assert decoded == ([CODES] * len(objects) if task == "segment" else [])
            assert all((o.mask is not None) == (task == "segment") for o in objects)


def _objects(
    question: ShapesQuestion, text: str, decoded: list[Sequence[int]]
) -> Sequence[PredictedObject]:
    """The objects of an answer; the decoded codes are appended to `decoded`."""

    def decode(codes: Sequence[int]) -> np.ndarray:
        decoded.append(codes)
        return np.ones((64, 64), np.float32)

    objects = parse_answer(question, text, decode)
    assert not isinstance(objects, str)
    return objects


def test_location_tokens_give_the_pixels_back() -> None:
    box = (0, 13, 57, 112)
    (parsed,) = _objects(
        ShapesQuestion("detect", "detect thing"), location_tokens(box) + " thing", []
    )
    assert location_tokens(box) == "<loc0000><loc0119><loc0521><loc1023>"
    assert tuple(round(edge) for edge in parsed.box) == box


def test_a_caption_names_every_shape_and_the_word() -> None:
    for scene in _scenes(40):
        caption = caption_text(scene)
        assert all(f"{s.size} {s.colour} {s.kind}" in caption for s in scene.shapes)
        assert scene.word is None or caption.endswith(f"the word {scene.word.text}")


def test_the_words_are_short_and_many() -> None:
    assert len(WORDS) >= 50 and {len(word) for word in WORDS} == {3, 4, 5}


# Scores


def test_what_does_not_parse_scores_nothing() -> None:
    scene = next(p for p in _scenes(50) if p.shapes)
    question = ShapesQuestion("detect", "detect x", objects=(NamedShape("x", 0),))

    def scored(text: str) -> float:
        return score(question, scene, parse_answer(question, text, _flat(1.0)))

    for text in ("", "x", "<loc0001> x", location_tokens(scene.shapes[0].box) + " y"):
        assert scored(text) == 0
    right = location_tokens(scene.shapes[0].box) + " x"
    assert scored(right) > 0.95
    assert scored(f"{right} ; {right}") < 0.51


def _flat(value: float) -> Callable[[object], np.ndarray]:
    return lambda codes: np.full((64, 64), value, dtype=np.float32)


def test_overlap_of_boxes() -> None:
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 2, 2), (0, 1, 2, 3)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 2, 2), (3, 3, 2, 2)) == 0


def test_a_mask_fills_its_box_and_nothing_else() -> None:
    whole = np.ones((64, 64), np.float32)
    mask = paste((10.0, 20.0, 30.0, 50.0), whole)
    assert mask.sum() == 20 * 30 and mask[10:30, 20:50].all()
    assert not paste((30.0, 20.0, 10.0, 50.0), whole).any()


def test_true_answers_score_full_marks() -> None:
    """Boxes and masks are never quite 1: their edges are rounded to location tokens."""
    results = evaluate(_true_answers(), count=20)
    assert {results[task]["score"] for task in ("caption", "answer", "ocr")} == {1.0}
    assert results["detect"]["score"] > 0.97


def _true_answers() -> Predictor:
    scenes = (scene for scene, _ in held_out_questions(20))

    def predict(_: Image.Image, questions: Sequence[ShapesQuestion]) -> list[ParsedAnswer]:
        scene = next(scenes)
        texts = [answer_text(question, scene, AnyCodes()) for question in questions]
        return [parse_answer(q, text, _flat(1.0)) for q, text in zip(questions, texts, strict=True)]

    return predict


def test_scoring_needs_no_torch() -> None:
    modules = "samples.shapes.evaluate, samples.shapes.write_images"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# Tokenizer


def test_ids_are_where_paligemma_has_them(pieces: spm.SentencePieceProcessor) -> None:
    assert [pieces.id_to_piece(i) for i in range(4)] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    first = pieces.piece_to_id("<loc0000>")
    wanted = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    assert [pieces.id_to_piece(first + i) for i in range(1152)] == wanted
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["image_token_index"] == pieces.get_piece_size() == first + 1152
    assert config["text_config"]["vocab_size"] % 64 == 0


@pytest.mark.parametrize(
    "text", ["detect red circle", "two  spaces ", "Żółw 東京", "\ttab", "12 345"]
)
def test_any_text_comes_back(pieces: spm.SentencePieceProcessor, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


def test_newlines_and_locations_never_merge(pieces: spm.SentencePieceProcessor) -> None:
    assert pieces.encode("a\n\n", out_type=str)[-2:] == ["\n", "\n"]
    text = "<loc0001><seg002> circle"
    assert pieces.encode(text, out_type=str) == ["<loc0001>", "<seg002>", "▁circle"]


def test_both_tokenizers_agree(pieces: spm.SentencePieceProcessor) -> None:
    from tokenizers import Tokenizer

    twin = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    lines = (ROOT / "samples/shapes/english.txt").read_text(encoding="utf-8").splitlines()
    for line in [*lines, *(q.prompt + "\n" for q in _questions(50)), "Żółw\n\n東京 <loc0012> ;"]:
        assert twin.encode(line, add_special_tokens=False).ids == pieces.encode(line)
    assert twin.token_to_id("<image>") == pieces.get_piece_size()


# Training batches


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_batch_is_what_the_processor_makes(pieces: spm.SentencePieceProcessor) -> None:
    import torch
    from transformers import PaliGemmaProcessor

    from samples.shapes.dataset import ExampleCollator, training_example

    examples = [training_example(number, AnyCodes()) for number in range(3)]
    (batch,) = ExampleCollator(pieces)(examples)
    pairs = _in_order_of_length(pieces, [p for example in examples for p in example.pairs])
    wanted = PaliGemmaProcessor.from_pretrained(CHECKPOINT)(
        text=[f"<image>{prompt}" for prompt, _ in pairs],
        suffix=[suffix for _, suffix in pairs],
        images=[Image.new("RGB", (SIDE, SIDE)) for _ in pairs],
        padding="longest",
        return_tensors="pt",
    )
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        assert torch.equal(batch[name], wanted[name]), name
    owners = [index for index, example in enumerate(examples) for _ in example.pairs]
    assert sorted(batch["image_index"].tolist()) == owners


def _in_order_of_length(
    pieces: spm.SentencePieceProcessor, pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    return sorted(pairs, key=lambda pair: sum(len(pieces.encode(text)) for text in pair))


def test_batches_share_the_rows_and_are_of_like_length(
    pieces: spm.SentencePieceProcessor,
) -> None:
    from samples.shapes.dataset import ExampleCollator, training_example

    examples = [training_example(number, AnyCodes()) for number in range(3)]
    (whole,) = ExampleCollator(pieces)(examples)
    parts = ExampleCollator(pieces)(examples, 3)
    assert len(parts) == 3
    assert sum(len(part["input_ids"]) for part in parts) == len(whole["input_ids"])
    widths = [part["input_ids"].shape[1] for part in parts]
    assert widths == sorted(widths) and widths[-1] == whole["input_ids"].shape[1]
    assert int((whole["attention_mask"]).sum()) == sum(
        int(part["attention_mask"].sum()) for part in parts
    )


def test_pixels_are_those_of_the_processor() -> None:
    import torch
    from transformers import PaliGemmaProcessor

    from samples.shapes.vision_pretraining import pixel_values

    scenes = list(_scenes(3))
    processor = PaliGemmaProcessor.from_pretrained(CHECKPOINT).image_processor
    wanted = processor([scene.image() for scene in scenes], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values(scenes), wanted, atol=1e-6)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_quarter_asks_for_what_is_absent_and_many_for_two(task: str) -> None:
    rng = np.random.default_rng(0)
    asked = [make_question(scene, task, rng) for scene in _scenes(600) if scene.shapes]
    absent = np.mean([bool(question.absent) for question in asked])
    assert 0.2 < absent < 0.3
    two = [question for question in asked if len(question.labels) == 2]
    assert 0.15 < len(two) / len(asked) < 0.5
    assert any(question.absent and question.objects for question in two)
    for question in asked:
        labels = [named.label for named in question.objects]
        assert labels == sorted(labels, key=question.labels.index)  # in the order of the prompt
        assert len({named.index for named in question.objects}) == len(labels)


def test_nothing_is_the_right_answer_where_nothing_is_there() -> None:
    nothing = ShapesQuestion("detect", "detect star")
    scene = draw("held_out", 1)
    assert answer_text(nothing, scene, AnyCodes()) == ""
    assert score(nothing, scene, []) == 1
    assert score(nothing, scene, [PredictedObject("star", (0, 0, 9, 9), None)]) == 0


def test_a_label_is_right_only_on_a_shape_that_has_it() -> None:
    scene = next(scene for scene in _scenes(100) if len(scene.shapes) == 2)
    one, two = (f"{shape.colour} {shape.kind}" for shape in scene.shapes)
    named = (NamedShape(one, 0), NamedShape(two, 1))
    question = ShapesQuestion("detect", f"detect {one} ; {two}", objects=named)

    def found(*labels: str) -> list[PredictedObject]:
        return [
            PredictedObject(label, tuple(map(float, shape.box)), None)  # type: ignore[arg-type]
            for label, shape in zip(labels, scene.shapes, strict=True)
        ]

    assert labels_are_right(question, scene, found(one, two))
    assert not labels_are_right(question, scene, found(two, one))
    assert not labels_are_right(question, scene, found(one, two)[:1])


# Mask VQ-VAE


def test_the_mask_decoder_has_the_official_arrays() -> None:
    from samples.shapes.mask_vae import MaskVae, inference_arrays

    with np.load(CHECKPOINT / "vae-oid.npz") as file:
        shapes = {name: file[name].shape for name in file.files}
    assert shapes == {name: array.shape for name, array in inference_arrays(MaskVae()).items()}
    assert shapes["_vq_vae._embedding"] == (128, 512)
    assert shapes["decoder.4.weight"] == (128, 128, 4, 4)
    assert shapes["decoder.3.net.4.weight"] == (128, 128, 1, 1)
    assert shapes["decoder.12.weight"] == (1, 16, 1, 1)


def test_plain_numpy_decodes_as_torch_does() -> None:
    import torch

    from samples.shapes.mask_vae import MaskVae, inference_arrays

    torch.manual_seed(0)
    vae = MaskVae()
    vae.codebook.data.normal_()
    wanted = vae.decode(torch.tensor([CODES]))[0, 0].detach().numpy()
    assert np.abs(mask_decoder.decode(inference_arrays(vae), CODES) - wanted).max() < 1e-5


# What is shipped


def test_all_that_is_shipped_fits_in_sixteen_megabytes() -> None:
    files = [f for folder in (CHECKPOINT, IMAGES) for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 16_000_000


def test_the_shipped_images_are_those_of_the_generator() -> None:
    entries = json.loads((IMAGES / "prompts.json").read_text())
    assert len(entries) >= 12
    for entry in entries:
        masks, pixels = _pixels(entry["masks"]), _pixels(entry["image"])
        assert (masks.shape, pixels.shape) == ((SIDE, SIDE), (SIDE, SIDE, 3))
        for truth in (t for q in entry["questions"] for t in q.get("objects", ())):
            rows, columns = np.nonzero(masks == truth["mask"])
            assert [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] == truth["box"]


def _pixels(name: str) -> np.ndarray:
    with Image.open(IMAGES / name) as image:
        return np.asarray(image)


def test_the_weights_are_small_and_have_the_names_of_the_hub() -> None:
    from safetensors import safe_open

    with safe_open(CHECKPOINT / "model.safetensors", "np") as file:
        names = set(file.keys())
        kinds = {file.get_slice(name).get_dtype() for name in names}
    assert kinds == {"BF16"}
    assert "language_model.model.embed_tokens.weight" in names
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert not any("lm_head" in name for name in names)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_shipped_model_answers() -> None:
    """Untrained or broken weights score nothing at all; README has the figures."""
    from samples.shapes.transformers_predictor import load_predictor

    results = evaluate(load_predictor(CHECKPOINT), count=16)
    floor = {"caption": 0.9, "answer": 0.85, "detect": 0.85, "segment": 0.8}
    floor |= {"two labels": 0.9, "absent": 0.95}
    assert set(results) <= set(MEASURES)
    assert {task for task, least in floor.items() if results[task]["score"] < least} == set()
