"""What a user may have meant by a prompt that is answered as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from paligemma_edge.runtime.text.tasks import Task


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
