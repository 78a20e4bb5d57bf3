"""Which fields of a generation_config.json change answers in transformers, and not in a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from paligemma_edge.export.checkpoint.generation_config import _EFFECTS, unfollowed_fields
from paligemma_edge.export.exporter import export
from paligemma_edge.export.verify.reference import Reference
from paligemma_edge.export.verify.samples import default_samples

EFFECTS: dict[str, Any] = {
    "min_new_tokens": 5,
    "suppress_tokens": [10, 11],
    "repetition_penalty": 1.3,
    "do_sample": True,
    "num_beams": 2,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7]],
    "sequence_bias": [[[7], 2.0]],
    "forced_eos_token_id": 1,
}


def write(folder: Path, **fields: Any) -> Path:  # noqa: ANN401 - of JSON
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **fields}))
    return folder


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_that_changes_answers_is_named(name: str, tmp_path: Path) -> None:
    assert unfollowed_fields(write(tmp_path, **{name: EFFECTS[name]})) == (name,)
    assert unfollowed_fields(write(tmp_path, **{name: None})) == ()


def test_values_without_an_effect_in_transformers_are_not_named(tmp_path: Path) -> None:
    defaults = GenerationConfig._get_default_generation_params()
    config: Any = GenerationConfig  # its methods carry no types
    assert set(_EFFECTS) - set(defaults) <= set(config().to_dict())
    assert unfollowed_fields(write(tmp_path, **defaults)) == ()
    config(eos_token_id=1, max_new_tokens=64).save_pretrained(tmp_path)
    assert unfollowed_fields(tmp_path) == ()
    assert unfollowed_fields(tmp_path / "nothing") == unfollowed_fields(None) == ()


def test_export_says_what_generate_would_follow(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))
    lines: list[str] = []
    export(write(folder), tmp_path / "a.bundle", log=lines.append)
    assert not any(line.startswith("answers: ") for line in lines)
    write(folder, suppress_tokens=[_first_token(folder)], min_new_tokens=1)
    export(folder, tmp_path / "b.bundle", log=lines.append)
    (line,) = (line for line in lines if line.startswith("answers: "))
    assert "generation_config.json has min_new_tokens, suppress_tokens, which" in line
    assert (
        _first_token(folder)
        != json.loads((folder / "generation_config.json").read_text())["suppress_tokens"][0]
    )


def _first_token(folder: Path) -> int:
    """That of transformers' `generate`, with the file as it is now."""
    reference = Reference.open(folder)
    pixels, ids = reference.inputs(default_samples()[0])
    output = reference.model.generate(
        input_ids=torch.tensor([ids]),
        token_type_ids=torch.zeros((1, len(ids)), dtype=torch.int64),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
        pixel_values=torch.from_numpy(pixels),
        max_new_tokens=1,
        do_sample=False,
    )
    return int(output[0, -1])
