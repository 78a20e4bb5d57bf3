"""What a user should know of a run before it begins: of its prompts, and of its folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.text.tasks import Task

_KINDS = 8  # of files that are named


def prompt_hints(prompts: Iterable[str]) -> Iterator[str]:
    """A line for each prompt whose labels are parted by commas: the model knows semicolons."""
    for prompt in prompts:
        labels = Task.of(prompt).labels
        if labels is not None and len(labels) == 1 and "," in labels[0]:
            verb = prompt.split(maxsplit=1)[0]
            parts = [part.strip() for part in labels[0].split(",") if part.strip()]
            if len(parts) > 1:
                yield (
                    f"{prompt!r} asks for one thing of that name; for {len(parts)} things write "
                    f"'{verb} {' ; '.join(parts)}'"
                )


def left_out_hint(left_out: Mapping[str, int]) -> Iterator[str]:
    """A line about the files of folders that are no images, the most frequent kinds first."""
    if left_out:
        kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
        named = [f"{count:,} {suffix or 'without an ending'}" for suffix, count in kinds[:_KINDS]]
        more = sum(count for _, count in kinds[_KINDS:])
        named += [f"{more:,} others"] * bool(more)
        yield short_line(f"left out of the folders, no images by their names: {', '.join(named)}")
