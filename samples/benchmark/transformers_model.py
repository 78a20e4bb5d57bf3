"""transformers' PaliGemma as its users run it, timed by stage, on a CPU or a GPU.

Eager is the model as it is loaded, with a cache that grows. Compiled is what `generate` does with
`cache_implementation="static"`: prefill is the same, steps go through `torch.compile` over a cache
of fixed size. Each step ends when the host has its tokens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.timing import Stage, Stopwatch

MODES = ("eager", "compiled")


@dataclass(frozen=True)
class Prefilled:
    """A prompt after prefill: the first token, keys and values, and the numbers of tokens."""

    token: int
    cache: Any  # a Cache of transformers, of one sequence
    length: int  # tokens of image and text
    prompt_tokens: int  # of the text


@dataclass
class TransformersModel:
    """transformers' model and processor, unchanged, with the times of their stages."""

    model: Any  # PaliGemmaForConditionalGeneration: its methods carry no types
    processor: Any  # PaliGemmaProcessor
    compiled: Callable[..., Any] | None = None  # the model's call; None: eager
    watch: Stopwatch = field(default_factory=Stopwatch)
    caches: dict[int, Any] = field(default_factory=dict)  # of fixed size, by batch size

    @classmethod
    def load(
        cls, checkpoint: Path, dtype: str, device: str = "cpu", *, compiled: bool = False
    ) -> TransformersModel:
        """Load with the attention that transformers chooses by default."""
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
        loaded = cls(model, processor)
        if compiled:
            # Each batch size is compiled separately, which is fastest and what a CUDA graph needs.
            # "reduce-overhead" is transformers' own default and runs steps as CUDA graphs.
            config = CompileConfig(fullgraph=True, dynamic=False, mode="reduce-overhead")
            loaded.compiled = model.get_compiled_call(config)
        loaded._time_stage("vision", model.model.vision_tower)
        loaded._time_stage("projector", model.model.multi_modal_projector)
        return loaded

    def no_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Inference mode; compiled code gets `no_grad` instead, as in `generate`."""
        import torch

        return torch.inference_mode() if self.compiled is None else torch.no_grad()

    def prefill(self, image: Path, prompt: str, steps: int) -> Prefilled:
        """Run from the image's file to the first token, with a cache that has room for `steps`."""
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
        seconds, stages = time.perf_counter() - start, self.watch.seconds
        self.watch.add("prefill", seconds - stages["vision"] - stages["projector"])
        image_tokens = int((ids == self.model.config.image_token_id).sum())
        return Prefilled(token, cache, ids.shape[1], ids.shape[1] - image_tokens)

    def step_seconds(self, prompt: Prefilled, slots: int, steps: int) -> float:
        """Mean seconds of a greedy step of `slots` sequences, each a copy of the prefilled prompt.

        The end-of-sequence token does not end a sequence.
        """
        import torch

        tokens = torch.full((slots, 1), prompt.token, device=self.model.device)
        position = torch.full((1, 1), prompt.length, device=self.model.device)
        cache = self._repeated_cache(prompt, slots, steps)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            tokens = self._next_tokens(tokens, cache, position)
            tokens.tolist()
            position = position + 1
        return (time.perf_counter() - start) / steps

    def _next_tokens(self, tokens: Any, cache: Any, position: Any) -> Any:  # noqa: ANN401
        """The most likely next tokens [slots, 1], from one call of the model."""
        if self.compiled is None:
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        else:
            inputs = self.model.prepare_inputs_for_generation(
                tokens, past_key_values=cache, position_ids=position, use_cache=True
            )
            output = self.compiled(**inputs, return_dict=True)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    def _repeated_cache(self, prompt: Prefilled, slots: int, steps: int) -> Any:  # noqa: ANN401
        """A cache whose sequences all have the keys and values of the prefilled prompt.

        A cache of fixed size is reused, because compiled steps are bound to its addresses.
        """
        if self.compiled is None:
            cache = self._cache(prompt.length + steps)
        elif (known := self.caches.get(slots)) is not None:
            cache = known
            cache.reset()
        else:
            cache = self.caches[slots] = self._cache(prompt.length + steps)
        for number, layer in enumerate(prompt.cache.layers):
            kept = (values[:, :, : prompt.length] for values in (layer.keys, layer.values))
            cache.update(*(values.repeat_interleave(slots, dim=0) for values in kept), number)
        return cache

    def _cache(self, capacity: int) -> Any:  # noqa: ANN401
        from transformers import DynamicCache, StaticCache

        if self.compiled is None:
            return DynamicCache()
        config = self.model.config.get_text_config(decoder=True)
        return StaticCache(config, max_cache_len=capacity)

    def _time_stage(self, stage: Stage, module: Any) -> None:  # noqa: ANN401
        started: list[float] = []

        def begin(*_: object) -> None:
            self._synchronize()
            started.append(time.perf_counter())

        def end(*_: object) -> None:
            self._synchronize()
            self.watch.add(stage, time.perf_counter() - started.pop())

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def _synchronize(self) -> None:
        """Wait until a GPU has finished its work."""
        if self.model.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
