"""transformers' PaliGemma as its users run it, stage by stage, on a processor or a GPU.

Eager is the model as it is loaded, with a cache that grows. Compiled is what `generate` does with
`cache_implementation="static"`: prompts are read as before, steps go through `torch.compile` over
a cache of a fixed size. Each step ends when the host knows its tokens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.timing import Stage, Stopwatch


@dataclass(frozen=True)
class Read:
    """A prompt that was read: its first token, its keys and values, its tokens."""

    token: int
    cache: Any  # a Cache of transformers, of one sequence
    length: int  # tokens of image and text
    prompt_tokens: int  # of the text


@dataclass
class Original:
    """transformers' model and processor, as they are."""

    model: Any  # PaliGemmaForConditionalGeneration: its methods carry no types
    processor: Any  # PaliGemmaProcessor
    compiled: Callable[..., Any] | None = None  # the model's call; None: eager
    watch: Stopwatch = field(default_factory=Stopwatch)
    caches: dict[int, Any] = field(default_factory=dict)  # static ones, by their sequences

    @classmethod
    def load(
        cls, checkpoint: Path, dtype: str, device: str = "cpu", *, compiled: bool = False
    ) -> Original:
        """Load with the attention that transformers chooses by itself."""
        import torch
        from transformers import (
            CompileConfig,
            PaliGemmaForConditionalGeneration,
            PaliGemmaProcessor,
        )

        model: Any = PaliGemmaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), local_files_only=True
        )
        model = model.to(device)
        processor = PaliGemmaProcessor.from_pretrained(checkpoint, local_files_only=True)
        original = cls(model, processor)
        if compiled:
            # Each number of sequences is compiled for itself: what is fastest, and what a CUDA
            # graph needs. "reduce-overhead" is transformers' own default: steps are such graphs.
            config = CompileConfig(fullgraph=True, dynamic=False, mode="reduce-overhead")
            original.compiled = model.get_compiled_call(config)
        original._listen("vision", model.model.vision_tower)
        original._listen("projector", model.model.multi_modal_projector)
        return original

    def calm(self) -> contextlib.AbstractContextManager[Any]:
        """Without gradients: as strictly as torch can, or as `generate` does to compile."""
        import torch

        return torch.inference_mode() if self.compiled is None else torch.no_grad()

    def read(self, image: Path, prompt: str, steps: int) -> Read:
        """From the image's file to the first token, with room for so many steps."""
        import torch
        from PIL import Image

        with self.watch.measure("preprocess"):
            pixels = Image.open(image).convert("RGB")
            inputs = self.processor(text=[f"<image>{prompt}"], images=[pixels], return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.model.dtype)
        start, ids = time.perf_counter(), inputs["input_ids"].to(self.model.device)
        cache = self._cache(ids.shape[1] + steps)
        output = self.model(
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
            pixel_values=pixels.to(self.model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = int(output.logits[0, -1].argmax())
        seconds, heard = time.perf_counter() - start, self.watch.seconds
        self.watch.add("prefill", seconds - heard["vision"] - heard["projector"])
        image_tokens = int((ids == self.model.config.image_token_id).sum())
        return Read(token, cache, ids.shape[1], ids.shape[1] - image_tokens)

    def step_seconds(self, read: Read, slots: int, steps: int) -> float:
        """Seconds of one greedy step of so many sequences; the end-of-sequence token ends nothing.

        Each starts behind the prompt that was read.
        """
        import torch

        tokens = torch.full((slots, 1), read.token, device=self.model.device)
        place = torch.full((1, 1), read.length, device=self.model.device)
        cache = self._repeated(read, slots, steps)
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            tokens = self._following(tokens, cache, place)
            tokens.tolist()
            place = place + 1
        return (time.perf_counter() - start) / steps

    def _following(self, tokens: Any, cache: Any, place: Any) -> Any:  # noqa: ANN401
        """The likeliest tokens [slots, 1] behind those, by one call of the model."""
        if self.compiled is None:
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        else:
            inputs = self.model.prepare_inputs_for_generation(
                tokens, past_key_values=cache, position_ids=place, use_cache=True
            )
            output = self.compiled(**inputs, return_dict=True)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    def _repeated(self, read: Read, slots: int, steps: int) -> Any:  # noqa: ANN401
        """A cache whose sequences all have the keys and values of the prompt that was read.

        One of a fixed size is used again: compiled steps are bound to its addresses.
        """
        if self.compiled is None:
            cache = self._cache(read.length + steps)
        elif (known := self.caches.get(slots)) is not None:
            cache = known
            cache.reset()
        else:
            cache = self.caches[slots] = self._cache(read.length + steps)
        for number, layer in enumerate(read.cache.layers):
            kept = (values[:, :, : read.length] for values in (layer.keys, layer.values))
            cache.update(*(values.repeat_interleave(slots, dim=0) for values in kept), number)
        return cache

    def _cache(self, capacity: int) -> Any:  # noqa: ANN401
        from transformers import DynamicCache, StaticCache

        if self.compiled is None:
            return DynamicCache()
        config = self.model.config.get_text_config(decoder=True)
        return StaticCache(config, max_cache_len=capacity)

    def _listen(self, stage: Stage, module: Any) -> None:  # noqa: ANN401
        started: list[float] = []

        def begin(*_: object) -> None:
            self._wait()
            started.append(time.perf_counter())

        def end(*_: object) -> None:
            self._wait()
            self.watch.add(stage, time.perf_counter() - started.pop())

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def _wait(self) -> None:
        """Until a GPU has done what it was told to."""
        if self.model.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
