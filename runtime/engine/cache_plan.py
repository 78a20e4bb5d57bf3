"""What a model is opened for, so that its memory can be sized at load."""

from __future__ import annotations

from dataclasses import dataclass

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelFacts
from paligemma_edge.runtime.validation import check_count

DEFAULT_MAX_BATCH = 4
_DEFAULT_ANSWER = 512  # tokens of prompt and answer, beside those of a picture


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model is opened for: so many answers at once, of so many tokens in all each."""

    max_batch: int
    max_length: int

    @classmethod
    def of(cls, facts: ModelFacts, max_batch: int | None, max_length: int | None) -> Plan | None:
        """The plan that was asked for; None where nothing was. OptionError for what cannot be."""
        if max_batch is None and max_length is None:
            return None
        return cls.complete(facts, max_batch, max_length)

    @classmethod
    def complete(cls, facts: ModelFacts, max_batch: int | None, max_length: int | None) -> Plan:
        """What was asked for, and a usual size for the rest. OptionError as above."""
        usual = min(facts.max_length, facts.image_tokens + _DEFAULT_ANSWER)
        batch = DEFAULT_MAX_BATCH if max_batch is None else check_count("max_batch", max_batch)
        length = usual if max_length is None else check_count("max_length", max_length)
        least = facts.image_tokens + 3  # a picture, <bos>, the newline and an answer
        if not least <= length <= facts.max_length:
            raise OptionError(
                f"max_length is {length}, wanted {least} to {facts.max_length} tokens of picture, "
                "prompt and answer together"
            )
        return cls(max_batch=batch, max_length=length)
