"""Runs the graphs: encode an image, prefill a slot, step all slots. The only file that does.

Knows tensors and sessions. Knows no text, no policy and no end of an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ComputeDtype
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.ort_errors import wrap_ort_errors
from paligemma_edge.runtime.device.run_stop import RunStop
from paligemma_edge.runtime.device.session import Session
from paligemma_edge.runtime.engine.decode_step import Inputs, Stepper
from paligemma_edge.runtime.engine.device_logits import DeviceOutputs, Pickers
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import HostOutputs, Outputs, Row
from paligemma_edge.runtime.engine.lora import LoraWeights
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import ModelConfig

Tensor: TypeAlias = ort.OrtValue  # on the device


@dataclass(frozen=True)
class Engine:
    """The open graphs of one variant."""

    config: ModelConfig
    image_id: int  # the first id that is never part of an answer
    dtype: ComputeDtype  # of features, keys and values
    memory: DeviceMemory
    sessions: Mapping[str, Session]
    adapter: LoraWeights

    def with_adapter(self, adapter: LoraWeights) -> Engine:
        """The same open graphs with another adapter."""
        return dataclasses.replace(self, adapter=adapter)

    @property
    def adapts_images(self) -> bool:
        """Whether the adapter changes what the model makes of an image."""
        graphs = (self.sessions[contract.VISION_ENCODER], self.sessions[contract.PROJECTOR])
        return any(name in graph.lora_inputs for graph in graphs for name in self.adapter.values)

    @property
    def cuda_graph(self) -> bool:
        """Whether steps of a `cuda_graph` cache are recorded and replayed."""
        return self.sessions[contract.DECODER].cuda_graph

    @property
    def lora_inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the graphs' inputs for an adapter, by name; a rank is None."""
        return {
            name: shape
            for session in self.sessions.values()
            for name, shape in session.lora_inputs.items()
        }

    @property
    def decodes_masks(self) -> bool:
        """Whether there is a mask decoder."""
        return contract.MASK_DECODER in self.sessions

    @property
    def threads(self) -> int:
        """CPU threads that each graph may use."""
        options = self.sessions[contract.DECODER].inference.get_session_options()
        return int(options.intra_op_num_threads)

    def encode(self, pixel_values: NDArray[np.float32], stop: RunStop | None = None) -> Tensor:
        """Pixels [images, 3, R, R] → the encoder's `last_hidden_state` [images, N, width]."""
        return self._call(
            contract.VISION_ENCODER,
            {contract.PIXEL_VALUES: self.memory.put(pixel_values)},
            contract.LAST_HIDDEN_STATE,
            stop,
        )

    def project(self, last_hidden_state: Tensor, stop: RunStop | None = None) -> Tensor:
        """[images, N, width] → `image_features` [images, N, hidden]."""
        return self._call(
            contract.PROJECTOR,
            {contract.LAST_HIDDEN_STATE: last_hidden_state},
            contract.IMAGE_FEATURES,
            stop,
        )

    def cache(self, slots: int, capacity: int, *, cuda_graph: bool = False) -> KVCache:
        """New slots of `capacity` tokens each; DeviceError where there is too little memory.

        Steps of a `cuda_graph` cache are recorded once, where the device does so, and replayed. An
        engine has one such cache, since a graph id is made of slots and adapter only.
        """
        needed = slots * self.config.cache_bytes(capacity, self.dtype) / 1e9
        with wrap_ort_errors(
            f"keys and values of {slots} slots need {needed:.2f} GB", self.memory.device
        ):
            return KVCache.allocate(
                self.memory,
                self.config,
                self.dtype,
                slots=slots,
                capacity=capacity,
                outputs=self._outputs(slots),
                cuda_graph=cuda_graph,
            )

    def prefill(
        self,
        cache: KVCache,
        slot: int,
        image_features: Tensor,
        ids: Sequence[int],
        stop: RunStop | None = None,
    ) -> Row:
        """Compute a whole prompt into a slot, images first → logits of the next token.

        `image_features` is [images, N, hidden], `ids` the text. It is one run: attention within a
        prompt is not causal, so no part of it can be computed before the rest. `stop` ends it.
        """
        images, tokens, _ = image_features.shape()
        length = images * tokens + len(ids)
        assert length <= cache.capacity, "a prompt is checked against the capacity before it is run"
        reader = self.sessions.get(contract.PREFILL, self.sessions[contract.DECODER])
        has_logits = contract.LOGITS in reader.outputs
        inputs = Inputs.of(self.memory, [ids], length)
        binding = reader.binding()
        self._bind_features(binding, image_features, (1, images * tokens))
        inputs.bind(binding)
        self.adapter.bind(binding, reader)
        if has_logits:
            cache.outputs.bind(binding, slot, 1)
        cache.bind(binding, slot, 1)
        reader.run(binding, stop=stop)
        cache.lengths[slot] = length
        return cache.outputs.read()[slot] if has_logits else self._step_last(cache, slot, ids[-1])

    def _step_last(self, cache: KVCache, slot: int, token: int) -> Row:
        """Run the last token of a prompt through the decoder again → logits.

        The last token sees the whole prompt, as a step does, so that a step at its position gives
        its logits: a prefill graph needs neither head nor last block.
        """
        cache.lengths[slot] -= 1
        return self.stepper(cache, 1, first=slot).step([token])[slot]

    def stepper(self, cache: KVCache, slots: int, *, first: int = 0) -> Stepper:
        """The decoder bound to `slots` slots from `first` on, for any number of steps."""
        key = (first, slots, self.adapter.name)
        if key not in cache.steppers:
            cache.steppers[key] = self._bind(cache, first, slots)
        return cache.steppers[key]

    def _bind(self, cache: KVCache, first: int, slots: int) -> Stepper:
        decoder = self.sessions[contract.DECODER]
        inputs, binding = Inputs.of(self.memory, [[0]] * slots, 1), decoder.binding()
        no_image = self.memory.empty_view(self.dtype, (slots, 0, self.config.hidden_size))
        no_image.bind_input(binding, contract.IMAGE_FEATURES)
        inputs.bind(binding)
        cache.outputs.bind(binding, first, slots)
        self.adapter.bind(binding, decoder)
        cache.bind(binding, first, slots)
        return Stepper(
            session=decoder,
            binding=binding,
            inputs=inputs,
            outputs=cache.outputs,
            lengths=cache.lengths[first : first + slots],
            capacity=cache.capacity,
            held=(cache.values, *self.adapter.values.values()),
            graph_id=self._graph_id(cache, first, slots),
        )

    def _graph_id(self, cache: KVCache, first: int, slots: int) -> int | None:
        """Under which steps are recorded: those of the first slots alone, whose memory stays."""
        if not cache.cuda_graph or first:
            return None
        return self.adapter.number * cache.slots + slots

    def decode_masks(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Segmentation codes [masks, 16], each 0..127 → masks [masks, 64, 64], about -1..1."""
        if not self.decodes_masks:
            raise BundleError(
                "the bundle has no mask decoder, so <seg> tokens stay codes; "
                "export it with --mask-decoder vae-oid.npz"
            )
        inputs = {contract.SEGMENTATION_CODES: self.memory.put(codes)}
        return self.memory.read(self._call(contract.MASK_DECODER, inputs, contract.MASK))

    def _call(
        self,
        graph: str,
        inputs: Mapping[str, Tensor],
        output: str,
        stop: RunStop | None = None,
    ) -> Tensor:
        session = self.sessions[graph]
        binding = session.binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        self.adapter.bind(binding, session)
        (value,) = session.finish(binding, output, stop=stop)
        return value

    def _outputs(self, slots: int) -> Outputs:
        """New memory for the decoder's outputs of `slots` slots."""
        vocab = self.config.vocab_size
        if contract.NEXT_TOKEN not in self.sessions[contract.DECODER].outputs:
            return HostOutputs(np.empty((slots, 1, vocab), np.float32), self.image_id)
        return DeviceOutputs.allocate(self.memory, self._pickers, slots, vocab, self.image_id)

    @cached_property
    def _pickers(self) -> Pickers:
        return Pickers(self.sessions[contract.PICK], self.sessions[contract.SHORTLIST])

    def _bind_features(
        self, binding: ort.IOBinding, features: Tensor, shape: tuple[int, int]
    ) -> None:
        view = self.memory.view(features, self.dtype, (*shape, self.config.hidden_size))
        view.bind_input(binding, contract.IMAGE_FEATURES)
