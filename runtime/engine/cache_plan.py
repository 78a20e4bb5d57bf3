"""What a model is opened for, so that its memory can be sized at load."""

from __future__ import annotations

from dataclasses import dataclass

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.validation import check_count

DEFAULT_MAX_BATCH = 4
_DEFAULT_ANSWER = 512  # tokens of prompt and answer, beside those of an image


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a model is opened for: so many answers at once, of so many tokens in all each."""

    max_batch: int
    max_length: int

    @classmethod
    def of(
        cls, config: ModelConfig, max_batch: int | None, max_length: int | None
    ) -> CachePlan | None:
        """The plan that was asked for; None where nothing was. OptionError for what cannot be."""
        if max_batch is None and max_length is None:
            return None
        return cls.complete(config, max_batch, max_length)

    @classmethod
    def complete(
        cls, config: ModelConfig, max_batch: int | None, max_length: int | None
    ) -> CachePlan:
        """What was asked for, and a usual size for the rest. OptionError as above."""
        usual = min(config.max_length, config.image_tokens + _DEFAULT_ANSWER)
        batch = DEFAULT_MAX_BATCH if max_batch is None else check_count("max_batch", max_batch)
        length = usual if max_length is None else check_count("max_length", max_length)
        least = config.image_tokens + 3  # an image, <bos>, the newline and an answer
        if not least <= length <= config.max_length:
            raise OptionError(
                f"max_length is {length}, wanted {least} to {config.max_length} tokens of image, "
                "prompt and answer together"
            )
        return cls(max_batch=batch, max_length=length)
