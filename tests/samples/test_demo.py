"""What `make demo` prints at its end works as it is printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from PIL import Image

from samples.demo import next_steps


def test_the_next_steps_work_as_they_are_printed(
    shapes_bundle: Path, shapes_images: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "shapes.bundle"
    bundle.symlink_to(shapes_bundle)
    *commands, page, read_on = next_steps(bundle, shapes_images)
    first, second = (
        subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        for command in commands
    )
    assert first.returncode == 0, first.stderr
    assert "star" in first.stdout
    with Image.open(tmp_path / "star.png") as drawn:
        assert drawn.format == "PNG"
    assert second.returncode == 0, second.stderr
    assert "star" in second.stdout
    target = page.split(":")[0].split()[-1]
    assert f"\n{target}: " in Path("Makefile").read_text()
    assert Path(read_on.partition(":")[0].strip()).is_file()
