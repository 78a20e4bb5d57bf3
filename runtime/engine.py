"""Runs the graphs: encode a picture, prefill a slot, step all slots. The only file that does.

Knows tensors and sessions. Knows no text, no policy and no end of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.contract import ModelFacts, Primed, Variant
from paligemma_edge.runtime.device import Device, one_line
from paligemma_edge.runtime.digests import Digests
from paligemma_edge.runtime.errors import BundleError, DeviceError
from paligemma_edge.runtime.graph_check import check_graph


@dataclass(frozen=True)
class Engine:
    """The open graphs of one variant."""

    facts: ModelFacts
    vision_encoder: ort.InferenceSession
    projector: ort.InferenceSession
    decoder: ort.InferenceSession
    prefiller: ort.InferenceSession | None  # where a recipe reads prompts by a graph of its own
    mask_decoder: ort.InferenceSession | None

    @classmethod
    def open(
        cls, variant: Variant, device: Device, digests: Digests, primed: Primed | None = None
    ) -> Engine:
        """Open every graph of a variant on a device, or the primed ones in their place.

        Each is opened once its digest was compared, the largest first and several at a time.
        """
        manifest = digests.bundle.manifest
        graphs = (primed or variant).graphs

        def session(graph: str) -> ort.InferenceSession:
            path = digests.file(graphs[graph])
            opened = device.open_session(path, optimized=primed is not None)
            check_graph(graph, opened, manifest, variant.compute_dtype)
            return opened

        for graph in (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER):
            if graph not in graphs:
                raise BundleError(
                    f"bundle {digests.bundle.path} has no {graph} graph; export the bundle again"
                )
        ordered = sorted(graphs, key=lambda graph: -_weight_bytes(digests.bundle, graphs[graph]))
        with ThreadPoolExecutor(2, thread_name_prefix="open") as pool:
            opened = dict(zip(ordered, pool.map(session, ordered), strict=True))
        return cls(
            manifest.model,
            opened[contract.VISION_ENCODER],
            opened[contract.PROJECTOR],
            opened[contract.DECODER],
            opened.get(contract.PREFILL),
            opened.get(contract.MASK_DECODER),
        )

    def encode(self, pixel_values: NDArray[np.float32]) -> ort.OrtValue:
        """Pixels [pictures, 3, R, R] → the encoder's `last_hidden_state` [pictures, N, width]."""
        pixels = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(pixel_values))
        feeds = {contract.PIXEL_VALUES: pixels}
        return _run(self.vision_encoder, feeds, contract.LAST_HIDDEN_STATE)

    def project(self, last_hidden_state: ort.OrtValue) -> ort.OrtValue:
        """[pictures, N, width] → `image_features` [pictures, N, hidden]."""
        feeds = {contract.LAST_HIDDEN_STATE: last_hidden_state}
        return _run(self.projector, feeds, contract.IMAGE_FEATURES)

    def prefill(
        self, cache: Cache, slot: int, image_features: ort.OrtValue, ids: Sequence[int]
    ) -> NDArray[np.float32]:
        """Read a whole prompt into a slot, its pictures in front → logits [vocab] of what follows.

        `image_features` is [pictures, N, hidden], `ids` the text. One run: a prompt sees itself
        whole, so no part of it can be read before the rest.
        """
        pictures, tokens, hidden = image_features.shape()
        length = pictures * tokens + len(ids)
        assert length <= cache.capacity, "a prompt is checked against the capacity before it is run"
        small = _SmallTensors.allocate(slots=1, text=len(ids), vocab=self.facts.vocab_size)
        small.write([ids], [length - 1], length)
        reader = self.prefiller or self.decoder
        binding = reader.io_binding()
        _bind_features(binding, image_features, (1, pictures * tokens, hidden))
        small.bind_inputs(binding)
        if reader is self.decoder:
            small.bind_logits(binding)
        cache.bind(binding, slot, 1)
        _run_bound(reader, binding)
        cache.lengths[slot] = length
        logits: NDArray[np.float32] = small.logits[0, 0]
        return logits if reader is self.decoder else self._read_again(cache, slot, ids[-1])

    def _read_again(self, cache: Cache, slot: int, token: int) -> NDArray[np.float32]:
        """The last token of a prompt through the decoder → logits [vocab].

        The last token sees the whole prompt, as a step does, so that a step over its own place
        in the cache gives its logits: a prefill graph needs neither head nor last block.
        """
        cache.lengths[slot] -= 1
        logits: NDArray[np.float32] = self._stepper(cache, slot, 1).step([token])[0]
        return logits

    def stepper(self, cache: Cache, slots: int) -> Stepper:
        """Bind the first `slots` slots once, for as many steps as wanted."""
        return self._stepper(cache, 0, slots)

    def _stepper(self, cache: Cache, first: int, slots: int) -> Stepper:
        hidden = self.facts.hidden_size
        nothing = ort.OrtValue.ortvalue_from_numpy(np.zeros((slots, 0, hidden), np.float32))
        small = _SmallTensors.allocate(slots=slots, text=1, vocab=self.facts.vocab_size)
        binding = self.decoder.io_binding()
        _bind_features(binding, nothing, (slots, 0, hidden))
        small.bind_inputs(binding)
        small.bind_logits(binding)
        cache.bind(binding, first, slots)
        lengths = cache.lengths[first : first + slots]
        return Stepper(self.decoder, binding, small, lengths, cache, nothing)

    def decode_masks(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Segmentation codes [masks, 16], each 0..127 → masks [masks, 64, 64], about -1..1."""
        if self.mask_decoder is None:
            raise BundleError(
                "the bundle has no mask decoder, so <seg> tokens stay codes; "
                "export it with --mask-decoder vae-oid.npz"
            )
        feeds = {contract.SEGMENTATION_CODES: ort.OrtValue.ortvalue_from_numpy(codes)}
        masks: NDArray[np.float32] = _run(self.mask_decoder, feeds, contract.MASK).numpy()
        return masks


@dataclass(frozen=True)
class Stepper:
    """One token of each slot, again and again, over memory that was bound once."""

    session: ort.InferenceSession
    binding: ort.IOBinding
    small: _SmallTensors
    lengths: NDArray[np.int32]  # of the slots that are stepped, a view into the cache's
    cache: Cache
    no_features: ort.OrtValue  # held because the binding points into it

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each slot → logits [slots, vocab], valid until the next step.

        A free slot takes part with any token; what it computes is not used.
        """
        lengths = self.lengths
        longest = int(lengths.max()) + 1
        assert longest <= self.cache.capacity, "an answer is kept within the capacity"
        self.small.write(np.reshape(tokens, (-1, 1)), lengths, longest)
        _run_bound(self.session, self.binding)
        lengths[lengths > 0] += 1
        return self.small.logits[:, 0]


@dataclass(frozen=True)
class _SmallTensors:
    """The decoder's ids and lengths and its logits, at addresses that stay."""

    ids: NDArray[np.int64]  # [slots, text]
    seqlens_k: NDArray[np.int32]  # [slots]
    total: NDArray[np.int32]  # []
    logits: NDArray[np.float32]  # [slots, 1, vocab]

    @classmethod
    def allocate(cls, *, slots: int, text: int, vocab: int) -> _SmallTensors:
        return cls(
            np.zeros((slots, text), np.int64),
            np.zeros(slots, np.int32),
            np.zeros((), np.int32),
            np.empty((slots, 1, vocab), np.float32),
        )

    def write(
        self,
        ids: NDArray[np.int64] | Sequence[Sequence[int]],
        seqlens_k: NDArray[np.int32] | Sequence[int],
        total: int,
    ) -> None:
        self.ids[:] = ids
        self.seqlens_k[:] = seqlens_k
        self.total[...] = total

    def bind_inputs(self, binding: ort.IOBinding) -> None:
        binding.bind_ortvalue_input(contract.INPUT_IDS, _shared(self.ids))
        binding.bind_ortvalue_input(contract.SEQLENS_K, _shared(self.seqlens_k))
        binding.bind_ortvalue_input(contract.TOTAL_SEQUENCE_LENGTH, _shared(self.total))

    def bind_logits(self, binding: ort.IOBinding) -> None:
        binding.bind_ortvalue_output(contract.LOGITS, _shared(self.logits))


def _shared(array: NDArray[np.generic]) -> ort.OrtValue:
    """A value over the array's own memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _bind_features(
    binding: ort.IOBinding, features: ort.OrtValue, shape: tuple[int, int, int]
) -> None:
    binding.bind_input(
        contract.IMAGE_FEATURES,
        features.device_name(),
        0,
        np.float32,
        shape,
        features.data_ptr(),
    )


def _weight_bytes(bundle: Bundle, graph: str) -> int:
    files = bundle.manifest.files
    return files[f"{graph}.data"].bytes if f"{graph}.data" in files else 0


def _run(
    session: ort.InferenceSession, feeds: Mapping[str, ort.OrtValue], output: str
) -> ort.OrtValue:
    try:
        return session.run_with_ort_values([output], dict(feeds))[0]
    except Exception as error:  # ONNX Runtime raises a class of its own for each code
        raise _failed(error) from None


def _run_bound(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # as above
        raise _failed(error) from None


def _failed(error: Exception) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime failed while it ran a graph: {one_line(error)}; "
        "ask for a shorter answer or fewer slots if memory ran out"
    )
