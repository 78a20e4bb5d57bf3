"""Runs the graphs: encode a picture, prefill a slot, step all slots. The only file that does.

Knows tensors and sessions. Knows no text, no policy and no end of an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.adapter import Adapter
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.contract import Adapted, ComputeDtype, ModelFacts, Primed, Variant
from paligemma_edge.runtime.decoding import Inputs, Stepper
from paligemma_edge.runtime.device import Device
from paligemma_edge.runtime.device_logits import DeviceOutputs, Pickers
from paligemma_edge.runtime.digests import Digests
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.graph_check import check_graph
from paligemma_edge.runtime.logits import HostOutputs, Outputs, Row
from paligemma_edge.runtime.session import Session, failed

if TYPE_CHECKING:
    import onnxruntime as ort

    from paligemma_edge.runtime.buffers import Memory

_REQUIRED = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)
_PICKERS = (contract.PICK, contract.SHORTLIST)


@dataclass(frozen=True)
class Engine:
    """The open graphs of one variant."""

    facts: ModelFacts
    image_id: int  # ids from here on are never an answer
    dtype: ComputeDtype  # of features, keys and values
    memory: Memory
    sessions: Mapping[str, Session]
    adapter: Adapter

    @classmethod
    def open(
        cls,
        variant: Variant,
        device: Device,
        digests: Digests,
        primed: Primed | None = None,
        adapted: Adapted | None = None,
    ) -> Engine:
        """Open every graph of a variant on a device, or primed or adapted ones in their place.

        Each is opened once its digest was compared, the largest first and several at a time.
        """
        manifest = digests.bundle.manifest
        graphs = (primed or variant).graphs

        def session(graph: str) -> Session:
            path, weights = digests.file(graphs[graph]), None
            if adapted is not None and graph in adapted.graphs:
                path, weights = digests.file(adapted.graphs[graph]), path.parent
            opened = device.open_session(
                path,
                optimized=primed is not None,
                captures=(captures := device.captures and graph == contract.DECODER),
                weights=weights,
            )
            check_graph(graph, opened, manifest, variant.compute_dtype)
            return Session(opened, device.memory, captures)

        _require_graphs(digests.bundle, variant, graphs)
        ordered = sorted(graphs, key=lambda graph: -_weight_bytes(digests.bundle, graphs[graph]))
        with ThreadPoolExecutor(2, thread_name_prefix="open") as pool:
            sessions = dict(zip(ordered, pool.map(session, ordered), strict=True))
        return cls(
            manifest.model,
            manifest.tokenizer.image_id,
            variant.compute_dtype,
            device.memory,
            sessions,
            Adapter("", 0, device.memory, variant.compute_dtype),
        )

    def adapted(self, adapter: Adapter) -> Engine:
        """The same open graphs with another adapter."""
        return dataclasses.replace(self, adapter=adapter)

    @property
    def lora_inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of what the graphs take of an adapter, by name; a rank is None."""
        return {
            name: shape
            for session in self.sessions.values()
            for name, shape in session.lora_inputs.items()
        }

    @property
    def decodes_masks(self) -> bool:
        """Whether segmentation codes can become masks."""
        return contract.MASK_DECODER in self.sessions

    @property
    def threads(self) -> int:
        """Threads of the processor that each graph may use."""
        options = self.sessions[contract.DECODER].inference.get_session_options()
        return int(options.intra_op_num_threads)

    def encode(self, pixel_values: NDArray[np.float32]) -> ort.OrtValue:
        """Pixels [pictures, 3, R, R] → the encoder's `last_hidden_state` [pictures, N, width]."""
        return self._call(
            contract.VISION_ENCODER,
            {contract.PIXEL_VALUES: self._put(pixel_values)},
            contract.LAST_HIDDEN_STATE,
        )

    def project(self, last_hidden_state: ort.OrtValue) -> ort.OrtValue:
        """[pictures, N, width] → `image_features` [pictures, N, hidden]."""
        return self._call(
            contract.PROJECTOR,
            {contract.LAST_HIDDEN_STATE: last_hidden_state},
            contract.IMAGE_FEATURES,
        )

    def cache(self, slots: int, capacity: int, *, captured: bool = False) -> Cache:
        """New slots that hold so many tokens each; DeviceError where memory does not.

        Steps of a `captured` cache are recorded once where the device does so, and replayed; an
        engine has one such cache, for its records are told apart by slots and adapter.
        """
        try:
            return Cache.allocate(
                self.memory, self.facts, self.dtype, slots, capacity, captured=captured
            )
        except Exception as error:  # MemoryError, or one of ONNX Runtime's
            needed = slots * self.facts.cache_bytes(capacity, self.dtype) / 1e9
            what = f"keys and values of {slots} slots need {needed:.2f} GB"
            raise failed(what, error, self.memory) from None

    def prefill(
        self, cache: Cache, slot: int, image_features: ort.OrtValue, ids: Sequence[int]
    ) -> Row:
        """Read a whole prompt into a slot, its pictures in front → logits of what follows.

        `image_features` is [pictures, N, hidden], `ids` the text. One run: a prompt sees itself
        whole, so no part of it can be read before the rest.
        """
        pictures, tokens, _ = image_features.shape()
        length = pictures * tokens + len(ids)
        assert length <= cache.capacity, "a prompt is checked against the capacity before it is run"
        reader = self.sessions.get(contract.PREFILL, self.sessions[contract.DECODER])
        answers = contract.LOGITS in reader.outputs
        inputs = Inputs.allocate(self.memory, slots=1, text=len(ids))
        inputs.write([ids], np.array([length - 1], np.int32), length)
        binding = reader.binding()
        self._bind_features(binding, image_features, (1, pictures * tokens))
        inputs.bind(binding)
        self.adapter.bind(binding, reader)
        outputs = self._outputs(reader, 1)
        if answers:
            outputs.bind(binding)
        cache.bind(binding, slot, 1)
        reader.run(binding)
        cache.lengths[slot] = length
        return outputs.read()[0] if answers else self._read_again(cache, slot, ids[-1])

    def _read_again(self, cache: Cache, slot: int, token: int) -> Row:
        """The last token of a prompt through the decoder → logits.

        The last token sees the whole prompt, as a step does, so that a step over its own place
        in the cache gives its logits: a prefill graph needs neither head nor last block.
        """
        cache.lengths[slot] -= 1
        return self._stepper(cache, slot, 1).step([token])[0]

    def stepper(self, cache: Cache, slots: int) -> Stepper:
        """The first `slots` slots, bound once for as many steps as wanted."""
        return self._stepper(cache, 0, slots)

    def _stepper(self, cache: Cache, first: int, slots: int) -> Stepper:
        key = (first, slots, self.adapter.name)
        if key not in cache.steppers:
            cache.steppers[key] = self._bind(cache, first, slots)
        return cache.steppers[key]

    def _bind(self, cache: Cache, first: int, slots: int) -> Stepper:
        decoder = self.sessions[contract.DECODER]
        nothing = self._put(np.zeros((slots, 0, self.facts.hidden_size), np.float32))
        inputs = Inputs.allocate(self.memory, slots=slots, text=1)
        outputs, binding = self._outputs(decoder, slots), decoder.binding()
        self._bind_features(binding, nothing, (slots, 0))
        inputs.bind(binding)
        outputs.bind(binding)
        self.adapter.bind(binding, decoder)
        cache.bind(binding, first, slots)
        return Stepper(
            session=decoder,
            binding=binding,
            inputs=inputs,
            outputs=outputs,
            lengths=cache.lengths[first : first + slots],
            capacity=cache.capacity,
            held=(nothing, cache.values, *self.adapter.values.values()),
            captured=self.adapter.number * cache.slots + slots if cache.captured else None,
        )

    def decode_masks(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Segmentation codes [masks, 16], each 0..127 → masks [masks, 64, 64], about -1..1."""
        if not self.decodes_masks:
            raise BundleError(
                "the bundle has no mask decoder, so <seg> tokens stay codes; "
                "export it with --mask-decoder vae-oid.npz"
            )
        inputs = {contract.SEGMENTATION_CODES: self._put(codes)}
        return self.memory.read(self._call(contract.MASK_DECODER, inputs, contract.MASK))

    def _call(self, graph: str, inputs: Mapping[str, ort.OrtValue], output: str) -> ort.OrtValue:
        session = self.sessions[graph]
        binding = session.binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        self.adapter.bind(binding, session)
        (found,) = session.finish(binding, output)
        return found

    def _put(self, array: NDArray[Any]) -> ort.OrtValue:
        return self.memory.put(array)

    def _outputs(self, reader: Session, slots: int) -> Outputs:
        """New memory for what a graph says of so many slots."""
        vocab = self.facts.vocab_size
        if contract.NEXT_TOKEN not in reader.outputs:
            return HostOutputs(np.empty((slots, 1, vocab), np.float32), self.image_id)
        pickers = Pickers(*(self.sessions[name] for name in _PICKERS))
        return DeviceOutputs.allocate(self.memory, pickers, slots, vocab, self.image_id)

    def _bind_features(
        self, binding: ort.IOBinding, features: ort.OrtValue, shape: tuple[int, int]
    ) -> None:
        place = self.memory.place(features, self.dtype, (*shape, self.facts.hidden_size))
        place.bind_input(binding, contract.IMAGE_FEATURES)


def _require_graphs(bundle: Bundle, variant: Variant, graphs: Mapping[str, str]) -> None:
    required = _REQUIRED if variant.device == "cpu" else (*_REQUIRED, *_PICKERS)
    for graph in required:
        if graph not in graphs:
            raise BundleError(
                f"bundle {bundle.path} has no {graph} graph; export or quantize it again"
            )


def _weight_bytes(bundle: Bundle, graph: str) -> int:
    files = bundle.manifest.files
    return files[f"{graph}.data"].bytes if f"{graph}.data" in files else 0
