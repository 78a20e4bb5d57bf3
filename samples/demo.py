"""Answer the sample pictures' prompts from a bundle, with the packages of the runtime alone."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from paligemma_edge.runtime import PaliGemma
from paligemma_edge.runtime.draw import draw
from paligemma_edge.runtime.image import load_image

ABSENT = ("torch", "transformers", "onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, help="pictures beside a prompts.json")
    parser.add_argument("output", type=Path, help="where to write the pictures with overlays")
    options = parser.parse_args()
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    if present:
        raise SystemExit(f"{', '.join(present)} can be imported here; this is to run without")
    print(f"no {', no '.join(ABSENT)} in this Python")
    answer_all(PaliGemma(options.bundle), options.pictures, options.output)


def answer_all(model: PaliGemma, pictures: Path, output: Path) -> None:
    """Print every answer beside the truth, and draw the boxes and masks."""
    output.mkdir(parents=True, exist_ok=True)
    for entry in json.loads((pictures / "prompts.json").read_text()):
        picture = load_image(pictures / entry["image"])
        print(f"\n{entry['image']}")
        for question in entry["prompts"]:
            generation = model.generate(picture, question["prompt"])
            print(f"  {question['prompt']:<40} {generation.text}")
            detections = generation.answer.detections
            if detections:
                masks = model.masks(detections, picture.width, picture.height)
                name = f"{Path(entry['image']).stem}-{question['prompt'].split()[0]}.png"
                draw(picture, detections, masks).save(output / name)
    print(f"\npictures with boxes and masks: {output}")


if __name__ == "__main__":
    main()
