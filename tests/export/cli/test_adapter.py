"""The command `adapter`, through the command line."""

from __future__ import annotations

import pytest

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from tests.helpers.lora_models import Model, contents

Captured = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return cli.main(["adapter", "-q", *map(str, arguments)])


def test_an_adapter_is_added_listed_replaced_and_removed(small: Model, capfd: Captured) -> None:
    assert run(small.bundle, small.adapter, "--name", "one") == 0
    assert capfd.readouterr().out == (
        f"{small.bundle}: added adapter one of rank 7 for cpu-fp32; it changes vision_encoder, "
        "projector, decoder\n"
    )
    assert run(small.bundle, small.adapter, "--name", "one") == EXIT_USAGE
    assert "already has an adapter one; give --overwrite" in capfd.readouterr().err
    again = ("--overwrite", "--variant", "cpu-fp32", "--variant", "cpu-fp32")
    assert run(small.bundle, small.adapter, "--name", "one", *again) == 0
    assert cli.main(["inspect", str(small.bundle)]) == 0
    assert "\nadapter  one: from lora, rank 7, changes" in capfd.readouterr().out
    assert run(small.bundle, "--name", "one", "--remove") == 0
    assert capfd.readouterr().out == f"{small.bundle}: removed adapter one\n"
    assert Bundle.open(small.bundle).manifest.adapters == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lora", "--remove"), "--remove takes a bundle and --name, and nothing else"),
        (("--remove", "--variant", "cpu-fp32"), "--remove takes a bundle and --name"),
        (("--remove", "--overwrite"), "--remove takes a bundle and --name"),
        (("--remove",), "adapter is 'one', which bundle"),
        ((), "ADAPTER is missing, wanted the directory of a LoRA adapter"),
        (("lora", "--variant", "cpu-int4"), "variant is 'cpu-int4'"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: tuple[str, ...], message: str, small: Model, capfd: Captured
) -> None:
    before = contents(small.bundle)
    assert run(small.bundle, *arguments, "--name", "one") == EXIT_USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("paligemma-edge: ")
    assert message in line
    assert contents(small.bundle) == before


def test_a_directory_without_an_adapter(small: Model, capfd: Captured) -> None:
    assert run(small.bundle, small.base, "--name", "one") == EXIT_FAILED
    (line,) = capfd.readouterr().err.splitlines()
    assert "has no adapter_config.json" in line


def test_help_has_examples(capfd: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capfd.readouterr().out
    assert "  paligemma-edge adapter mix.bundle parts-lora --name parts\n" in text
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "\n  adapter " in capfd.readouterr().out
