"""Slots of keys and values: allocated for each request, or once at load and then shared."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.errors import DeviceError, OptionError
from paligemma_edge.runtime.validation import check_count


class KVCachePool:
    """Gives out slots: new ones for each request, or the planned ones to one user at a time."""

    def __init__(self, engine: Engine, plan: CachePlan | None) -> None:
        """Allocate the planned slots; DeviceError where there is too little memory."""
        self.engine, self.plan = engine, plan
        self._planned: KVCache | None = None
        if plan is not None:
            self._planned = engine.cache(
                plan.max_batch_size, plan.max_length, cuda_graph=engine.cuda_graph
            )
        self._free = threading.Lock()

    @property
    def max_length(self) -> int:
        """Tokens that a sequence may have."""
        return self.plan.max_length if self.plan else self.engine.config.max_length

    def slots(self, wanted: int | None, default: int) -> int:
        """The number of slots to use: `wanted`, else the planned ones, else `default`.

        OptionError for more than were planned.
        """
        if wanted is None:
            return self.plan.max_batch_size if self.plan else default
        slots = check_count("max_batch_size", wanted)
        if self.plan and slots > self.plan.max_batch_size:
            raise OptionError(
                f"max_batch_size is {slots}, the model was opened with max_batch_size "
                f"{self.plan.max_batch_size}; open it with more, or request fewer"
            )
        return slots

    @contextmanager
    def acquire(self, slots: int, capacity: int) -> Iterator[KVCache]:
        """At least `slots` free slots of at least `capacity` tokens.

        DeviceError where there is too little memory, or where the planned slots are in use.
        """
        if self._planned is None:
            yield self.engine.cache(slots, capacity)
            return
        assert slots <= self._planned.slots and capacity <= self._planned.capacity, "checked before"
        if not self._free.acquire(blocking=False):
            raise DeviceError(
                "the slots that were planned are in use by an answer that is not complete; "
                "read its stream to the end or close it, or open the model without max_batch_size "
                "and max_length"
            )
        try:
            self._planned.lengths[:] = 0
            yield self._planned
        finally:
            self._free.release()
