"""Answer the sample images' prompts from a bundle, with the packages of the runtime alone."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma_edge.runtime import ObjectResult, PaliGemma, TextResult

ABSENT = ("torch", "transformers", "onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="images beside a prompts.json")
    parser.add_argument("output", type=Path, help="where to write the images with overlays")
    options = parser.parse_args()
    if present := [name for name in ABSENT if importlib.util.find_spec(name)]:
        raise SystemExit(f"{', '.join(present)} can be imported here; this is to run without")
    print(f"in this Python there is no {', no '.join(ABSENT)}")
    model = PaliGemma(options.bundle)
    answers = answer_all(model, options.images, options.output)
    print(f"\nimages with boxes and masks: {options.output}")
    for variant in model.bundle.manifest.variants:
        if variant != model.variant:
            compare(PaliGemma(options.bundle, variant=variant), answers, options.images)


def compare(model: PaliGemma, answers: dict[tuple[str, str], str], images: Path) -> None:
    """Ask a smaller variant the same, and say where it answers otherwise."""
    print(f"\n{model.variant}, {size(model) / 1e6:.1f} MB:", end=" ")
    said = {key: model.answer(images / key[0], key[1]).text for key in answers}
    other = [key for key in answers if said[key] != answers[key]]
    print(f"{len(answers) - len(other)} of {len(answers)} answers are the lossless variant's")
    for key in other:
        print(f"  {key[0]} {key[1]}\n    {answers[key]}\n    {said[key]}")


def size(model: PaliGemma) -> int:
    """Bytes of a variant on disk."""
    manifest = model.bundle.manifest
    return sum(manifest.files[name].bytes for name in manifest.variants[model.variant].files)


def answer_all(model: PaliGemma, images: Path, output: Path) -> dict[tuple[str, str], str]:
    """Print every answer beside the truth, and draw the boxes and masks.

    Returns the answers by image and prompt.
    """
    output.mkdir(parents=True, exist_ok=True)
    answers = {}
    for entry in json.loads((images / "prompts.json").read_text()):
        print(f"\n{entry['image']}")
        with model.encode(images / entry["image"]) as view:
            for question in entry["questions"]:
                result = view.answer(question["prompt"])
                answers[entry["image"], result.prompt] = result.text
                print("\n".join(describe(result, question)))
                if isinstance(result, ObjectResult) and len(result):
                    name = f"{Path(entry['image']).stem}-{question['task']}.png"
                    overlay(result).save(output / name)
    return answers


def describe(result: TextResult | ObjectResult, question: dict[str, Any]) -> list[str]:
    """The prompt, then what was answered and what is true; boxes in pixels, x0 y0 x1 y1."""
    lines = [f"  {result.prompt}"]
    if isinstance(result, TextResult):
        verdict = "right" if result.text == question["text"] else f"truth: {question['text']}"
        return [*lines, f"    {result.text}  ({verdict})"]
    lines += [
        f"    {found.label} {found.xyxy}{' and a mask' if found.decoded is not None else ''}, "
        f"probability {math.exp(found.score):.2f}"
        for found in result
    ]
    for truth in question["objects"]:
        y0, x0, y1, x1 = truth["box"]
        lines.append(f"    truth: {truth['label']} {(x0, y0, x1, y1)}")
    return lines


def overlay(result: ObjectResult) -> Image.Image:
    """What was found drawn over the image, large enough to look at."""
    assert result.image is not None
    size = (result.width * 4, result.height * 4)
    return result.draw(result.image.resize(size, Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
