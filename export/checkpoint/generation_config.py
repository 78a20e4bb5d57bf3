"""What transformers' `generate` would do that greedy answers of a bundle do not.

Its values without an effect are those of transformers 5.23, `GenerationConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paligemma_edge.export.checkpoint.config import GENERATION_FILE, read_json
from paligemma_edge.export.checkpoint.content import has_file

_NOTHING: tuple[object, ...] = (None, [], {})
# Fields that decide which tokens are chosen or where an answer ends → values without an effect.
# Limits of the length are options of `run`, and temperature and the like follow do_sample.
_EFFECTS: Mapping[str, tuple[object, ...]] = {
    "do_sample": (False,),
    "num_beams": (1,),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), ()),
    **dict.fromkeys(("sequence_bias", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("stop_strings", "watermarking_config", "penalty_alpha", "dola_layers"), ()),
    "token_healing": (False,),
}


def unfollowed_fields(directory: Path | None) -> tuple[str, ...]:
    """The fields of a checkpoint's generation_config.json that change answers there, and not here.

    Raises CheckpointError where the file cannot be read.
    """
    if directory is None or not has_file(directory / GENERATION_FILE):
        return ()
    values = read_json(directory / GENERATION_FILE)
    return tuple(n for n, none in _EFFECTS.items() if values.get(n) not in (*_NOTHING, *none))
