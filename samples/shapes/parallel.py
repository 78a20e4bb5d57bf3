"""Splits training between processes, one core each, which average their gradients.

On a CPU one thread a process is much faster than several: each of a small model's operations
would wait for the slowest thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Part:
    """One of the processes that share each step's images."""

    rank: int = 0
    count: int = 1

    def images(self, step: int, per_step: int) -> range:
        """The numbers of the images that this process has in a step."""
        mine = per_step // self.count
        first = step * per_step + self.rank * mine
        return range(first, first + mine)

    def average(self, vector: Tensor) -> None:
        """Replace a vector by its mean over the processes."""
        if self.count > 1:
            dist.all_reduce(vector)
            vector /= self.count


def run(function: Callable[..., None], count: int, rendezvous: Path, *args: object) -> None:
    """Call function(part, *args) in `count` new processes, and wait for them.

    Args:
        function: A module's function, so that the new processes can import it.
        count: How many processes.
        rendezvous: A file by which they find each other; one that is there is removed.
        args: What else the function takes.
    """
    rendezvous.unlink(missing_ok=True)
    given = (function, count, str(rendezvous.resolve()), args)
    spawn(_enter, given, nprocs=count)  # type: ignore[no-untyped-call]
    rendezvous.unlink(missing_ok=True)


def _enter(
    rank: int, function: Callable[..., None], count: int, rendezvous: str, args: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    function(Part(rank, count), *args)
    dist.destroy_process_group()
