"""Answer the sample pictures' prompts from a bundle, with the packages of the runtime alone."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma_edge.runtime import Generation, PaliGemma
from paligemma_edge.runtime.draw import draw
from paligemma_edge.runtime.image import load_image

ABSENT = ("torch", "transformers", "onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, help="pictures beside a prompts.json")
    parser.add_argument("output", type=Path, help="where to write the pictures with overlays")
    options = parser.parse_args()
    if present := [name for name in ABSENT if importlib.util.find_spec(name)]:
        raise SystemExit(f"{', '.join(present)} can be imported here; this is to run without")
    print(f"in this Python there is no {', no '.join(ABSENT)}")
    model = PaliGemma(options.bundle)
    answers = answer_all(model, options.pictures, options.output)
    print(f"\npictures with boxes and masks: {options.output}")
    for variant in model.bundle.manifest.variants:
        if variant != model.variant:
            compare(PaliGemma(options.bundle, variant=variant), answers, options.pictures)


def compare(model: PaliGemma, answers: dict[tuple[str, str], str], pictures: Path) -> None:
    """Ask a smaller variant the same, and say where it answers otherwise."""
    print(f"\n{model.variant}, {size(model) / 1e6:.1f} MB:", end=" ")
    said = {key: model.generate(pictures / key[0], key[1]).text for key in answers}
    other = [key for key in answers if said[key] != answers[key]]
    print(f"{len(answers) - len(other)} of {len(answers)} answers are the lossless variant's")
    for key in other:
        print(f"  {key[0]} {key[1]}\n    {answers[key]}\n    {said[key]}")


def size(model: PaliGemma) -> int:
    """Bytes of a variant on disk."""
    manifest = model.bundle.manifest
    return sum(manifest.files[name].bytes for name in manifest.variants[model.variant].files)


def answer_all(model: PaliGemma, pictures: Path, output: Path) -> dict[tuple[str, str], str]:
    """Print every answer beside the truth, and draw the boxes and masks.

    Returns the answers by picture and prompt.
    """
    output.mkdir(parents=True, exist_ok=True)
    answers = {}
    for entry in json.loads((pictures / "prompts.json").read_text()):
        picture = load_image(pictures / entry["picture"])
        print(f"\n{entry['picture']}")
        for question in entry["questions"]:
            generation = model.generate(picture, question["prompt"])
            answers[entry["picture"], question["prompt"]] = generation.text
            for line in describe(generation, question, picture):
                print(line)
            if generation.answer.detections:
                name = f"{Path(entry['picture']).stem}-{question['task']}.png"
                overlay(model, generation, picture).save(output / name)
    return answers


def describe(generation: Generation, question: dict[str, Any], picture: Image.Image) -> list[str]:
    """The prompt, then what was answered and what is true; boxes in pixels, y0 x0 y1 x1."""
    lines = [f"  {generation.prompt}"]
    if "things" not in question:
        verdict = "right" if generation.text == question["text"] else f"truth: {question['text']}"
        return [*lines, f"    {generation.text}  ({verdict})"]
    found = generation.answer.detections
    answered = [(d.label, d.box.pixels(picture.width, picture.height), d.codes) for d in found]
    lines += [
        f"    {label} {box}{' and a mask' if codes else ''}" for label, box, codes in answered
    ]
    lines += [f"    truth: {thing['label']} {tuple(thing['box'])}" for thing in question["things"]]
    return lines


def overlay(model: PaliGemma, generation: Generation, picture: Image.Image) -> Image.Image:
    """The picture with what was found drawn over it, large enough to look at."""
    large = picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.LANCZOS)
    found = generation.answer.detections
    return draw(large, found, model.masks(found, large.width, large.height))


if __name__ == "__main__":
    main()
