"""The script of `completion`, read by the shell that it is for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from paligemma_edge.runtime.cli import main as cli
from tests.helpers.journey import call, refused

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = call("completion", "bash")
    assert done.returncode == 0, done.stderr
    file = tmp_path_factory.mktemp("completion") / "paligemma-edge.bash"
    file.write_text(done.stdout)
    return file


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["in"], ["inspect"]),
        (["run", "mix.bundle", "--max-n"], ["--max-new-tokens"]),
        (["run", "mix.bundle", "--device", "c"], ["cpu", "cuda"]),
        (["quantize", "mix.bundle", "--min"], ["--min-agreement"]),
        (["inspect", "mi"], ["mix.bundle"]),
        (["run", "mix.bundle", "caption en", "ph"], ["photo.jpg"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes_commands_options_values_and_files(
    script: Path, tmp_path: Path, words: list[str], offered: list[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (tmp_path / "mix.bundle").mkdir()
    (tmp_path / "photo.jpg").touch()
    code = (
        'source "$1"; shift; COMP_WORDS=(paligemma-edge "$@"); COMP_CWORD=$#\n'
        '_shtab_paligemma_edge paligemma-edge "${COMP_WORDS[COMP_CWORD]}" ""\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "-c", code, "bash", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == offered, done.stderr


def test_zsh_has_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("#compdef paligemma-edge")
    assert "--min-confidence" in shown


def test_without_shtab_the_pip_command_is_named() -> None:
    line = refused("completion", "bash", light=True)
    assert "pip install 'paligemma-edge[completion]'" in line
