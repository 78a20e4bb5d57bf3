"""Records what PaliGemma's public demo and supervision read from forms of answers.

The demo is not a package: give the file `paligemma_parse.py` of the Space big-vision/paligemma, or
a copy of its `extract_objs` without the masks, which need jax. supervision is the installed one.

    python -m tests.runtime.text.record_answer_forms paligemma_parse.py
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

FORMS = Path(__file__).with_name("answer_forms.json")
SIZE = (800, 600)  # width and height


def location(*values: int) -> str:
    return "".join(f"<loc{value:04}>" for value in values)


BOX, OTHER = location(100, 200, 300, 400), location(500, 600, 700, 800)
MASK = "".join(f"<seg{code:03}>" for code in range(16))
TEXTS = {
    "one object": f"{BOX} cat",
    "two objects": f"{BOX} cat ; {OTHER} dog",
    "several words": f"{BOX} a black cat-like animal 2",
    "a mask": f"{BOX}{MASK} cat",
    "a cut mask": f"{BOX}{MASK[:40]} cat",
    "no label": BOX,
    "no label, then one": f"{BOX} ; {OTHER} dog",
    "an empty label": f"{BOX}  ; {OTHER} dog",
    "boxes side by side": f"{BOX}{OTHER} dog",
    "three locations": f"{location(100, 200, 300)} cat",
    "five locations": f"{location(100, 200, 300, 400, 500)} cat",
    "seven locations": f"{location(100, 200, 300, 400, 500, 600, 700)} cat",
    "three locations, then an object": f"{location(100, 200, 300)} cat ; {OTHER} dog",
    "y1 < y0": f"{location(300, 200, 100, 400)} cat",
    "x1 < x0": f"{location(100, 400, 300, 200)} cat",
    "no height": f"{location(100, 200, 100, 400)} cat",
    "text before": f"here is {BOX} cat",
    "text before and after": f"here is {BOX} cat ; and no more",
    "a line break before": f"\n{BOX} cat",
    "a line break between": f"{BOX} cat\n{OTHER} dog",
    "a line break in text before": f"here\nis {BOX} cat",
    "no blank before the label": f"{BOX}cat",
    "two blanks before the label": f"{BOX}  cat",
    "no blanks around ;": f"{BOX} cat;{OTHER} dog",
    "no ;": f"{BOX} cat {OTHER} dog",
    "an apostrophe": f"{BOX} cat's ear",
    "a comma": f"{BOX} cat, dog",
    "brackets": f"{BOX} cat (black)",
    "letters of other scripts": f"{BOX} 猫 ; {OTHER} größe",
    "capitals": f"{BOX} Cat ; {OTHER} CAT",
    "a number that is no location": f"{location(100, 200, 300)}<loc1024> cat",
    "words alone": "there is no cat",
    "nothing": "",
}


def theirs(text: str) -> list[dict[str, Any]]:
    """What supervision reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
        import supervision as sv
    found = sv.Detections.from_vlm(sv.VLM.PALIGEMMA, text, resolution_wh=SIZE)
    names = [str(name) for name in found.data["class_name"]]
    return [
        {"label": name, "xyxy": box.tolist()} for name, box in zip(names, found.xyxy, strict=True)
    ]


def _demo(path: Path) -> Any:  # noqa: ANN401 - a function of a file without types
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_objs


def main() -> None:
    """Write the file anew."""
    import supervision

    extract = _demo(Path(sys.argv[1]))
    forms = {}
    for name, text in TEXTS.items():
        read = [one for one in extract(text.lstrip("\n"), *SIZE) if "xyxy" in one]  # as its app
        demo = [{"label": one["name"], "xyxy": list(one["xyxy"])} for one in read]
        forms[name] = {"text": text, "demo": demo, "supervision": theirs(text)}
    versions = {"demo": "the Space big-vision/paligemma", "supervision": supervision.__version__}
    written = {"versions": versions, "size": SIZE, "forms": forms}
    FORMS.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
