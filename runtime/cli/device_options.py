"""The options of the command line that say which bundle is opened, where and with what."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from paligemma_edge.runtime.validation import check_bytes, check_pixels

if TYPE_CHECKING:
    from paligemma_edge.runtime.loading.options import LoadOptions


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle that a command reads."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="folder that `export` wrote, or its name on the Hub (org/name, or org/name@revision)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options that choose where and with what a bundle runs → their group."""
    group = parser.add_argument_group("model and device")
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where the model runs; default: auto, on a GPU if there is one",
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="variant of the bundle, such as cpu-int8; `inspect` lists them and the default",
    )
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of the processor; default: as many as it has cores to use",
    )
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="memory of the GPU to use, such as 6GB; default: what is free",
    )
    group.add_argument(
        "--cuda-graph",
        action="store_true",
        help="record the steps on the GPU once and replay them, which is faster",
    )
    return group


def add_max_length(group: argparse._ActionsContainer) -> None:
    """The longest sequence that memory is allocated for."""
    group.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of image, prompt and answer together that memory is allocated for",
    )


def add_max_batch_size(group: argparse._ActionsContainer, of: str) -> None:
    """How many answers come at a time; `of` says what that decides."""
    group.add_argument("--max-batch-size", type=int, metavar="N", help=of)


def load_options(arguments: argparse.Namespace) -> LoadOptions:
    """What the command line says of them."""
    limit, sizes = arguments.memory_limit, vars(arguments)
    pixels = sizes.get("max_pixels")
    return {
        "threads": arguments.threads,
        "max_batch_size": sizes.get("max_batch_size"),
        "max_length": sizes.get("max_length"),
        "memory_limit": None if limit is None else check_bytes("--memory-limit", limit),
        "cuda_graph": arguments.cuda_graph,
        "max_pixels": None if pixels is None else check_pixels("--max-pixels", pixels),
    }
