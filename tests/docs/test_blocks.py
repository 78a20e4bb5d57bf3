"""Every code block of the README and the docs runs, page by page, in a folder of stand-ins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.docs_folder import build_folder, copy_folder
from tests.helpers.markdown import ROOT, documented, languages, read_blocks
from tests.helpers.serving import running_server
from tests.helpers.shared import build_once
from tests.helpers.shell_lines import check_line, pipelines, run_line

# Blocks that are no code: what a program prints, files and folders.
PLAIN = {"text", "json", "toml"}
ADDRESS = "127.0.0.1:8000"  # of a server, in examples
NOT_RUN = 3  # blocks that say why they cannot run here; each is a gap, so they are counted


def with_blocks(language: str) -> list[Path]:
    return [page for page in documented() if read_blocks(page, language)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The current folder: all that examples name is there, and it may be changed."""
    shared = build_once(tmp_path_factory, "docs", build_folder)
    with monkeypatch.context() as patch:
        patch.chdir(copy_folder(shared, tmp_path / "docs"))
        yield
    shutil.rmtree(tmp_path / "docs")  # a bundle for each page is a lot


@contextmanager
def asked_here(page: Path) -> Iterator[str]:
    """The address of the server that a page asks, which is another one than it says."""
    if ADDRESS not in page.read_text(encoding="utf-8"):
        yield ADDRESS
        return
    with running_server(Path("mix.bundle")) as running:
        yield f"127.0.0.1:{running.address.port}"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers
@pytest.mark.filterwarnings("ignore:OpenCV .* is not installed:UserWarning")  # supervision
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page are one program: what an earlier one defines, a later one uses."""
    names: dict[str, object] = {"__name__": "__main__"}
    with asked_here(page) as address:
        for block in read_blocks(page, "python"):
            # Lines are counted from the top of the page, so that a traceback leads there.
            source = "\n" * (block.line - 1) + block.code.replace(ADDRESS, address)
            program = compile(source, str(page), "exec")
            if block.not_run is None:
                exec(program, names)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_shell_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked_here(page) as address:
        for block in read_blocks(page, "sh"):
            for pipeline in pipelines(block.code.replace(ADDRESS, address)):
                print(f"{block}: {pipeline}")  # shown where it fails
                if block.not_run is None:
                    run_line(pipeline, monkeypatch)
                else:
                    check_line(pipeline)


@pytest.mark.parametrize("page", with_blocks("json"), ids=name)
def test_json_blocks_are_json(page: Path) -> None:
    """One value, or one a line."""
    for block in read_blocks(page, "json"):
        try:
            json.loads(block.code)
        except json.JSONDecodeError:
            assert [json.loads(line) for line in block.code.splitlines()]


def test_the_recipe_of_the_docs_is_one(tmp_path: Path) -> None:
    from paligemma_edge.quantize.recipes.recipe import load_recipe

    (block,) = read_blocks(ROOT / "docs" / "quantization.md", "toml")
    (tmp_path / "cpu-mine.toml").write_text(block.code)
    assert load_recipe(str(tmp_path / "cpu-mine.toml")).layers


def test_every_block_says_what_it_is() -> None:
    """An unnamed block would be checked by nobody."""
    unknown = {name(page): languages(page) - {"python", "sh", *PLAIN} for page in documented()}
    assert not {page: found for page, found in unknown.items() if found}


def test_blocks_that_cannot_run_here_are_few() -> None:
    blocks = [
        b for page in documented() for b in (*read_blocks(page, "python"), *read_blocks(page, "sh"))
    ]
    left_out = [f"{block}: {block.not_run}" for block in blocks if block.not_run is not None]
    assert len(left_out) == NOT_RUN, left_out
