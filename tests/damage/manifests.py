"""Damaged manifests of a bundle, and now and then a changed byte in a file that it lists."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import MANIFEST
from tests.damage.attempt import LONGEST_LINE, Damaged, Wrong, unfit_line
from tests.damage.bundles import IMAGE, command, write_adapter, write_bundle
from tests.damage.mutate import mutated_bytes, mutated_json

_INSPECT: Sequence[Sequence[str]] = ((), ("--files",), ("--json",))


class Manifests:
    """A bundle of this process alone, whose manifest is another in each attempt."""

    def __init__(self, prepared: Path, own: Path) -> None:
        self._bundle = Path(shutil.copytree(prepared / "shapes.bundle", own / "shapes.bundle"))
        self._true = (self._bundle / MANIFEST).read_bytes()
        self._files = json.loads(self._true)["files"]

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write the undamaged bundle."""
        write_bundle(folder / "shapes.bundle", write_adapter(folder / "lora"))

    def damaged(self, random: Random) -> Damaged:
        """Another manifest, and in one of four attempts a file of which a byte is changed too."""
        whole = random.random() < 0.8
        data = (
            mutated_json(json.loads(self._true), random)
            if whole
            else mutated_bytes(self._true, random)
        )
        changed = random.choice(sorted(self._files)) if random.random() < 0.25 else ""
        return Damaged(MANIFEST, data, changed)

    def use(self, damaged: Damaged) -> str:
        """Inspect the bundle, open it, and ask it once where it opens."""
        (self._bundle / MANIFEST).write_bytes(damaged.data)
        if damaged.about:
            self._flip(damaged.about)
        try:
            self._inspect(_INSPECT[len(damaged.data) % len(_INSPECT)])
            return self._ask()
        finally:
            if damaged.about:
                self._flip(damaged.about)

    def _flip(self, name: str) -> None:
        """Change the byte in the middle of a file; again, and it is as it was."""
        with (self._bundle / name).open("r+b") as file:
            file.seek(self._files[name]["bytes"] // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 16]))

    def _inspect(self, options: Sequence[str]) -> None:
        code, output, errors = command("inspect", self._bundle, *options)
        for line in (*output.split("\n"), *errors.split("\n")):
            shown = line[:LONGEST_LINE] if "--json" in options else line  # JSON is for programs
            if line and (problem := unfit_line(shown)):
                raise Wrong(f"inspect {' '.join(options)}: {problem}")
        if code not in (0, 1) or (code == 1) != bool(errors):
            raise Wrong(f"inspect {' '.join(options)}: exit {code}, {errors}")

    def _ask(self) -> str:
        with PaliGemma(self._bundle, threads=1) as model:
            for name in model._loaded.verified_files:
                digest = hashlib.sha256((self._bundle / name).read_bytes()).hexdigest()
                if digest != self._files[name]["sha256"]:
                    raise Wrong(f"opened with another {name}")
            model.generate(IMAGE, "caption en", max_new_tokens=2)
        return "answered"


KIND = Manifests
