"""What the decoder tells of the next token: one row of logits a slot, asked as little as needed.

Knows rows that lie on the host, where all of a row is at hand. What lies on a GPU answers the
same questions, see `device_logits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import DeviceError

_BLOCK = 1 << 15  # logits that stay in the processor's cache from one operation to the next


class Shortlist:
    """The most likely tokens of a row and their logits, the likeliest first."""

    def __init__(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        order = np.argsort(tokens)
        self.tokens, self.logits = tokens[order], logits[order]  # ascending tokens
        self.least = float(logits.min())

    def holds_top(self, count: int) -> bool:
        """Whether the `count` likeliest tokens, with all that equal the last of them, are here."""
        if not 0 < count < len(self.logits):
            return False
        return float(np.partition(self.logits, -count)[-count]) > self.least


class Row(Protocol):
    """Logits of one slot. `spoken` are those of tokens that may be an answer: [image_id]."""

    @property
    def best(self) -> int:
        """The most likely token that may be spoken, of equal ones the first.

        DeviceError where the logits are no numbers.
        """
        ...

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        """All logits that may be an answer, [image_id]."""
        ...

    @property
    def whole(self) -> NDArray[np.float32]:
        """All logits, [vocab]."""
        ...

    @property
    def shortlist(self) -> Shortlist | None:
        """The likeliest tokens; None where all are as near."""
        ...

    def at(self, tokens: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits of some tokens."""
        ...

    def log_prob(self, token: int) -> float:
        """Log-probability of a token among those that may be spoken; DeviceError as above."""
        ...

    def log_probs(self, tokens: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log-probabilities of some tokens; DeviceError as above."""
        ...


@dataclass(frozen=True, eq=False)
class HostRow:
    """Logits float32 [vocab] that lie on the host."""

    whole: NDArray[np.float32]
    image_id: int

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        """All that may be an answer."""
        return self.whole[: self.image_id]

    @property
    def best(self) -> int:
        """The most likely token."""
        token = int(self.answer_logits.argmax())  # the first NaN, if there is one
        require_number(float(self.whole[token]))
        return token

    @property
    def shortlist(self) -> None:
        """None: the whole row is as near."""
        return None

    def at(self, tokens: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits of some tokens."""
        return self.whole[tokens]

    def log_prob(self, token: int) -> float:
        """Log-probability of a token."""
        return float(self.whole[token]) - self._log_sum_exp

    def log_probs(self, tokens: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log-probabilities of some tokens."""
        return self.whole[tokens].astype(np.float64) - self._log_sum_exp

    @cached_property
    def _log_sum_exp(self) -> float:
        return log_sum_exp(self.answer_logits)


class Logits(Protocol):
    """What runs of the decoder gave, a row a slot; valid until a slot is run again."""

    def __getitem__(self, slot: int) -> Row: ...


class Outputs(Protocol):
    """Where the decoder writes what follows, at addresses that stay."""

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Let the decoder write what it says of slots `first` to `first + count`."""
        ...

    def read(self) -> Logits:
        """What the last run wrote."""
        ...


@dataclass(frozen=True)
class HostOutputs:
    """Logits float32 [slots, 1, vocab] on the host."""

    values: NDArray[np.float32]
    image_id: int

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Let the decoder write there."""
        value = ort.OrtValue.ortvalue_from_numpy(self.values[first : first + count])
        binding.bind_ortvalue_output(contract.LOGITS, value)

    def read(self) -> HostOutputs:
        """What the last run wrote."""
        return self

    def __getitem__(self, slot: int) -> HostRow:
        return HostRow(self.values[slot, 0], self.image_id)


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """What a logit lies above its log-probability; DeviceError where logits are no numbers."""
    peak = require_number(float(logits.max()))  # NaN, if there is one
    blocks = range(0, len(logits), _BLOCK)
    total = sum(float(np.exp(logits[start : start + _BLOCK] - peak).sum()) for start in blocks)
    return peak + math.log(total)


def require_number(value: float) -> float:
    """The value; DeviceError where it is infinite or no number."""
    if not math.isfinite(value):
        raise DeviceError(
            f"the variant produced {value} where logits were wanted; "
            "use a variant that computes in float32 or bfloat16"
        )
    return value
