"""The options of the command line that say where and with what a bundle is opened."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from paligemma_edge.runtime.validation import check_bytes

if TYPE_CHECKING:
    from paligemma_edge.runtime.loading.options import LoadOptions


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose where and with what a bundle runs."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--variant", metavar="NAME", help="such as cpu-fp32; see inspect")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the usable cores")
    add_plan_options(parser)
    parser.add_argument(
        "--memory-limit", metavar="SIZE", help="of a GPU, such as 6GB; default: what is free"
    )
    parser.add_argument(
        "--cuda-graph", action="store_true", help="record the steps on a GPU, and replay them"
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """What memory is sized for."""
    parser.add_argument(
        "--max-batch", type=int, metavar="N", help="answers at once that memory is sized for"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of image, prompt and answer that memory is sized for",
    )


def load_options(arguments: argparse.Namespace) -> LoadOptions:
    """What the command line says of them."""
    limit = arguments.memory_limit
    return {
        "threads": arguments.threads,
        "max_batch_size": arguments.max_batch,
        "max_length": arguments.max_length,
        "memory_limit": None if limit is None else check_bytes("--memory-limit", limit),
        "cuda_graph": arguments.cuda_graph,
    }
