"""How many slots of how many tokens a model is opened for, so that memory is allocated at load."""

from __future__ import annotations

from dataclasses import dataclass

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.validation import check_count

DEFAULT_MAX_BATCH_SIZE = 4
_DEFAULT_ANSWER = 512  # tokens of prompt and answer, beside those of an image


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Slots that are allocated at load: `max_batch_size` of them, `max_length` tokens each."""

    max_batch_size: int
    max_length: int

    @classmethod
    def of(
        cls, config: ModelConfig, max_batch_size: int | None, max_length: int | None
    ) -> CachePlan | None:
        """The requested plan; None where neither is given. OptionError for an unusable value."""
        if max_batch_size is None and max_length is None:
            return None
        return cls.complete(config, max_batch_size, max_length)

    @classmethod
    def complete(
        cls, config: ModelConfig, max_batch_size: int | None, max_length: int | None
    ) -> CachePlan:
        """The requested plan, with defaults for what is None. OptionError for an unusable value."""
        usual = min(config.max_length, config.image_tokens + _DEFAULT_ANSWER)
        slots = DEFAULT_MAX_BATCH_SIZE
        if max_batch_size is not None:
            slots = check_count("max_batch_size", max_batch_size)
        length = usual if max_length is None else check_count("max_length", max_length)
        least = config.image_tokens + 3  # an image, <bos>, the newline and an answer
        if not least <= length <= config.max_length:
            raise OptionError(
                f"max_length is {length}, wanted {least} to {config.max_length} tokens of image, "
                "prompt and answer together"
            )
        return cls(max_batch_size=slots, max_length=length)
