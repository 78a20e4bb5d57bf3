"""Answers the sample images' prompts from a bundle, with the runtime's packages alone."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma_edge import ObjectResult, PaliGemma, TextResult

FORBIDDEN = ("torch", "transformers", "onnx")
LOSSLESS = "cpu-fp32"  # the yardstick; where none is named a bundle gives the preferred variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle of the sample model")
    parser.add_argument("images", type=Path, help="folder with images and a prompts.json")
    parser.add_argument("output", type=Path, help="folder for images with overlays")
    options = parser.parse_args()
    if present := [name for name in FORBIDDEN if importlib.util.find_spec(name)]:
        raise SystemExit(
            f"{', '.join(present)} is installed; run the demo in an environment without it"
        )
    print(f"in this Python there is no {', no '.join(FORBIDDEN)}")
    with PaliGemma(options.bundle, variant=LOSSLESS) as model:
        answers = answer_all(model, options.images, options.output)
    print(f"\nimages with boxes and masks: {options.output}")
    for variant in model.bundle.manifest.variants:
        if variant != LOSSLESS:
            with PaliGemma(options.bundle, variant=variant) as smaller:
                compare(smaller, answers, options.images)
    print("\nWhat to try next, with images of your own in place of the sample's:")
    print("\n".join(next_steps(options.bundle, options.images)))


def next_steps(bundle: Path, images: Path) -> list[str]:
    """A command for this shell, the same from Python, the page, and where to read on."""
    programs = Path(os.path.relpath(Path(sys.executable).parent))
    image, star = images / "00.png", bundle.with_name("star.png")
    code = (
        "from paligemma_edge import PaliGemma; "
        f"print(PaliGemma('{bundle}').caption('{image}').text)"
    )
    return [
        f'  {programs}/paligemma-edge run {bundle} "detect star" {image} --draw {star}',
        f'  {programs}/python -c "{code}"',
        "  make page: ask it in your browser",
        "  README.md: export a PaliGemma of your own, make it smaller, and all that Python can ask",
    ]


def compare(model: PaliGemma, answers: dict[tuple[str, str], str], images: Path) -> None:
    """Give a smaller variant the same prompts, and print where its answers differ."""
    print(f"\n{model.variant}, {size(model) / 1e6:.1f} MB:", end=" ")
    texts = {key: model.run(images / key[0], key[1]).text for key in answers}
    different = [key for key in answers if texts[key] != answers[key]]
    same = len(answers) - len(different)
    print(f"{same} of {len(answers)} answers equal those of the lossless variant")
    for key in different:
        print(f"  {key[0]} {key[1]}\n    {answers[key]}\n    {texts[key]}")


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
        with model.encode(images / entry["image"]) as image:
            for question in entry["questions"]:
                result = image.run(question["prompt"])
                answers[entry["image"], result.prompt] = result.text
                print("\n".join(describe(result, question)))
                if isinstance(result, ObjectResult) and len(result):
                    name = f"{Path(entry['image']).stem}-{question['task']}.png"
                    overlay(result).save(output / name)
    return answers


def describe(result: TextResult | ObjectResult, question: dict[str, Any]) -> list[str]:
    """The prompt, the answer and the truth as lines; boxes are x0, y0, x1, y1 in pixels."""
    lines = [f"  {result.prompt}"]
    if isinstance(result, TextResult):
        verdict = "right" if result.text == question["text"] else f"truth: {question['text']}"
        return [*lines, f"    {result.text}  ({verdict})"]
    lines += [
        f"    {detection.label} {detection.xyxy}"
        f"{' and a mask' if detection.decoded_mask is not None else ''}, "
        f"confidence {detection.confidence:.2f}"
        for detection in result
    ]
    if not question["objects"]:
        return [*lines, "    truth: nothing" if len(result) else "    nothing  (right)"]
    for truth in question["objects"]:
        y0, x0, y1, x1 = truth["box"]
        lines.append(f"    truth: {truth['label']} {(x0, y0, x1, y1)}")
    return lines


def overlay(result: ObjectResult) -> Image.Image:
    """The detected objects drawn over the image, enlarged for viewing."""
    assert result.image is not None
    size = (result.width * 4, result.height * 4)
    return result.draw(result.image.resize(size, Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
