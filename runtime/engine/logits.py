"""The decoder's logits of the next token, one row a slot, read no more than needed.

Knows rows on the host, where reading a whole row costs nothing. Rows on a GPU have the same
interface, see `device_logits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.engine.scores import log_sum_exp, require_number


class Shortlist:
    """The most likely tokens of a row and their logits, in ascending order of tokens."""

    def __init__(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        order = np.argsort(tokens)
        self.tokens, self.logits = tokens[order], logits[order]
        self.least = float(logits.min())

    def holds_top(self, count: int) -> bool:
        """Whether it has the `count` most likely tokens and all that equal the last of them."""
        if not 0 < count < len(self.logits):
            return False
        return float(np.partition(self.logits, -count)[-count]) > self.least


class Row(Protocol):
    """Logits of one slot. Answer tokens are those below `image_id`."""

    @property
    def best(self) -> int:
        """The most likely answer token, of equal ones the first.

        DeviceError where the logits are NaN or infinite.
        """
        ...

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        """Logits of all answer tokens, [image_id]."""
        ...

    @property
    def whole(self) -> NDArray[np.float32]:
        """All logits, [vocab]."""
        ...

    @property
    def shortlist(self) -> Shortlist | None:
        """The most likely tokens; None where reading the whole row costs no more."""
        ...

    def at(self, tokens: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits of some tokens."""
        ...

    def log_prob(self, token: int) -> float:
        """Log-probability of a token among all answer tokens; DeviceError as above."""
        ...

    def log_probs(self, tokens: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log-probabilities of some tokens; DeviceError as above."""
        ...

    def log_prob_of_any(self, tokens: range) -> float:
        """Log-probability that one of these answer tokens comes next; DeviceError as above."""
        ...


@dataclass(frozen=True, eq=False)
class HostRow:
    """Logits of one slot on the host, float32 [vocab]."""

    whole: NDArray[np.float32]
    image_id: int

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        """Logits of all answer tokens, [image_id]."""
        return self.whole[: self.image_id]

    @property
    def best(self) -> int:
        """The most likely token."""
        token = int(self.answer_logits.argmax())  # the first NaN, if there is one
        require_number(float(self.whole[token]))
        return token

    @property
    def shortlist(self) -> None:
        """None: the whole row is on the host."""
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

    def log_prob_of_any(self, tokens: range) -> float:
        """Log-probability that one of these tokens comes next."""
        return log_sum_exp(self.whole[tokens.start : tokens.stop]) - self._log_sum_exp

    @cached_property
    def _log_sum_exp(self) -> float:
        return log_sum_exp(self.answer_logits)


class Logits(Protocol):
    """Logits of all slots, a row a slot; each is valid until its slot is run again."""

    def __getitem__(self, slot: int) -> Row: ...


class Outputs(Protocol):
    """Where the decoder writes its logits, at fixed addresses."""

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Bind slots `first` to `first + count` as the decoder's outputs."""
        ...

    def read(self) -> Logits:
        """The logits of the last run."""
        ...


@dataclass(frozen=True)
class HostOutputs:
    """Logits float32 [slots, 1, vocab] on the host."""

    values: NDArray[np.float32]
    image_id: int

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Bind slots `first` to `first + count` as the decoder's output."""
        value = ort.OrtValue.ortvalue_from_numpy(self.values[first : first + count])
        binding.bind_ortvalue_output(contract.LOGITS, value)

    def read(self) -> HostOutputs:
        """The logits of the last run."""
        return self

    def __getitem__(self, slot: int) -> HostRow:
        return HostRow(self.values[slot, 0], self.image_id)
