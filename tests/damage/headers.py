"""Damaged headers of safetensors files and of the index of several, given to `export`."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.runtime.errors import PaliGemmaError
from samples.synthetic.models import official
from samples.synthetic.write import write_checkpoint
from tests.damage.attempt import Damaged, Wrong
from tests.damage.bundles import CHECKPOINT, IMAGE
from tests.damage.mutate import mutated_bytes, mutated_json

INDEX = "model.safetensors.index.json"


class Headers:
    """A tiny random checkpoint, in one file and in two, of which one header is damaged."""

    def __init__(self, prepared: Path, own: Path) -> None:
        self._places = {
            f"{folder.name}/{path.name}": path
            for folder in sorted(prepared.iterdir())
            for path in sorted(folder.glob("model*.safetensors*"))
        }
        self._own = own

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write both undamaged checkpoints."""
        vision, text = official("paligemma-3b-224", shrink=True)
        for name, shards in (("one", 1), ("two", 2)):
            write_checkpoint(
                folder / name, vision=vision, text=text, shards=shards, tokenizer=CHECKPOINT
            )

    def damaged(self, random: Random) -> Damaged:
        """A file whose header, or its length, is another."""
        name = random.choice(list(self._places))
        data = self._places[name].read_bytes()
        if name.endswith(INDEX):
            return Damaged(name, mutated_json(json.loads(data), random))
        (length,) = struct.unpack("<Q", data[:8])
        header, body = data[8 : 8 + length], data[8 + length :]
        if random.random() < 0.2:
            return Damaged(name, mutated_bytes(data[: 8 + length], random) + body)
        other = mutated_json(json.loads(header), random)
        return Damaged(name, struct.pack("<Q", len(other)) + other + body)

    def use(self, damaged: Damaged) -> str:
        """Export it: a bundle that opens, or nothing at all."""
        folder, target = self._own / "checkpoint", self._own / "target"
        for old in (folder, target):
            shutil.rmtree(old, ignore_errors=True)
        target.mkdir()
        shutil.copytree(self._places[damaged.name].parent, folder)
        (folder / Path(damaged.name).name).write_bytes(damaged.data)
        try:
            export(folder, target / "a.bundle")
        except PaliGemmaError:
            if left := _names(target):
                raise Wrong(f"refused, and left {left}") from None
            raise
        if (left := _names(target)) != ["a.bundle"]:
            raise Wrong(f"left {left}")
        return self._opened(target / "a.bundle")

    @staticmethod
    def _opened(bundle: Path) -> str:
        try:
            model = PaliGemma(bundle, threads=1)
            model.bundle.verify(model.bundle.manifest.files)
        except PaliGemmaError as error:
            raise Wrong(f"exported a bundle that does not open: {error}") from error
        model.generate(IMAGE, "caption en", max_new_tokens=2)
        return "exported"


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


KIND = Headers
